"""`ldm sample MODEL`: pictures from a model, under any guidance."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.cli.editing import PreparedEdit, path_of, prepare
from ldm.cli.parsing import parse
from ldm.cli.sample_settings import SampleRun, in_turn
from ldm.runtime.distributed import Processes, torchrun_processes
from ldm.runtime.errors import UserError
from ldm.runtime.progress import progress
from ldm.sampling.branches import check_used
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.energies import files_of
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.single_pass import load_direct


@dataclass(frozen=True)
class Ready:
    """All that was checked before the first picture is drawn."""

    folder: Path
    pipeline: Pipeline
    requests: list[Request]
    sampling: SamplingConfig
    seed: int
    first: int
    edit: PreparedEdit | None


def run(arguments: list[str]) -> None:
    """Sample, and say where the pictures are; under torchrun on all its processes, of which the first writes."""
    with torchrun_processes() as processes:
        settings, device = processes.run_on_all(lambda: _settings(arguments))
        direct = processes.run_on_all(lambda: load_direct(settings.model, device))
        if direct is not None:
            from ldm.cli.direct import draw

            return processes.run_on_main_and_broadcast(lambda: draw(settings, direct, _folder(settings)))
        ready = processes.run_on_all(lambda: _prepare(settings, processes.device(device)))
        _draw(settings, ready, processes)


def _settings(arguments: list[str]) -> tuple[SampleRun, torch.device]:
    settings = parse(SampleRun, arguments, "sample")
    from ldm.runtime.device import resolve_device

    if not settings.model:
        raise UserError("MODEL is missing: give a model folder or the output folder of `ldm train diffusion`")
    for name in ("num_images", "batch_size"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(settings, name)}")
    if settings.first_index < 0:
        raise UserError(f"--first-index must be 0 or more, got {settings.first_index}")
    settings.editing.check()
    _folder(settings)
    return settings, resolve_device(settings.device)


def _folder(settings: SampleRun) -> Path:
    from ldm.cli.outputs import check_output

    return check_output(settings.output_dir, settings.overwrite)


def _prepare(settings: SampleRun, device: torch.device) -> Ready:
    from ldm.cli.outputs import check_tiling, read_settings_of

    pipeline = Pipeline.load(
        settings.model, device=device, classifier=settings.classifier or None, weak=settings.weak or None
    )
    check_tiling(settings.tiling, pipeline.autoencoder)
    pipeline.tiling = settings.tiling
    sampling, seed, first = settings.sampling, settings.seed, settings.first_index
    flags, record = settings.editing, None
    if settings.recreate:
        request, sampling, facts, record = read_settings_of(settings.recreate)
        if strange := sorted(set(files_of(sampling.energy)) - set(settings.sampling.energy)):
            raise UserError(
                f"--recreate: the picture asks to read files ({strange[0]}); allow it by giving that --energy"
            )
        requests, seed, first = [request], facts["seed"], facts["index"]
        if record is None and (flags.init_image or flags.invert):
            raise UserError(f"--recreate {settings.recreate}: it was made from noise; leave out the picture")
        flags = record.flags(flags, settings.recreate) if record is not None else flags
    else:
        requests = requests_of(settings, pipeline)
    check_used(sampling)
    prepared = prepare(flags, pipeline, requests, sampling, record)
    pipeline.check(requests, sampling)
    return Ready(_folder(settings), pipeline, requests, sampling, seed, first, prepared)


def _draw(settings: SampleRun, ready: Ready, processes: Processes) -> None:
    from ldm.cli.outputs import write_samples

    start, edit, pipeline = time.monotonic(), ready.edit, ready.pipeline
    processes.warn_if_idle(len(ready.requests), settings.batch_size)
    batches = pipeline.generate(
        ready.requests,
        ready.sampling,
        seed=ready.seed,
        first_index=ready.first,
        batch_size=settings.batch_size,
        start=edit.edit.start if edit is not None else None,
        shard=processes.shard,
    )
    if edit is not None:
        batches = map(edit.edit.finish, batches)
    count = -(-len(ready.requests) // settings.batch_size)
    drawn = processes.gather_batches(batches, count)
    if not processes.is_main:
        for _ in drawn:
            raise RuntimeError("only the first process has pictures to write")
        processes.gather(pipeline.evaluations)
        return
    shown = write_samples(
        ready.folder,
        progress(drawn, "sample (batches)", total=count),
        ready.requests,
        ready.sampling,
        {
            "model": settings.model,
            "classifier": list(settings.classifier),
            "weak": settings.weak,
            "seed": ready.seed,
            "first_index": ready.first,
        },
        edit=edit.record if edit is not None else None,
        beside=edit.beside if edit is not None else None,
    )
    seconds = time.monotonic() - start
    evaluations = sum(processes.gather(pipeline.evaluations))
    print(f"{len(ready.requests)} pictures, {evaluations} network evaluations, {seconds:.1f} s: {shown}")
    for line in edit.lines if edit is not None else ():
        print(line)


def requests_of(settings: SampleRun, pipeline: Pipeline) -> list[Request]:
    """The conditions of each picture: prompts and classes take turns; of an inversion, one of each; of a path, one."""
    labels: list[int | None] = [pipeline.class_id(name) for name in settings.class_label]
    inverts, interpolates = bool(settings.editing.invert), settings.editing.interpolates
    if interpolates and (len(labels) > 1 or len(settings.prompt) > 1):
        raise UserError(
            "--interpolate-seed, --interpolate-prompt: one --prompt or --class-label is where a path begins"
        )
    if interpolates and pipeline.has_classes and not labels:
        raise UserError("--interpolate-seed: this model draws classes; say which one with --class-label")
    if settings.editing.interpolate_prompt is not None and not pipeline.has_text:
        raise UserError("--interpolate-prompt: this model was not trained on text; use --interpolate-seed")
    if not labels and pipeline.has_classes and not settings.prompt and not inverts:
        labels = list(range(len(pipeline.class_names)))
    if settings.negative_class is not None and not pipeline.has_classes:
        raise UserError("--negative-class: this model's U-Net knows no classes; use --negative-prompt")
    negative = None if settings.negative_class is None else pipeline.class_id(settings.negative_class)
    count = max(len(settings.prompt), len(labels), 1) if inverts else settings.num_images
    numbers = [settings.first_index] if interpolates else range(settings.first_index, settings.first_index + count)
    requests = in_turn(settings, labels, negative, numbers)
    return path_of(settings.editing, requests[0], count) if interpolates else requests
