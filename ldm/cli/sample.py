"""`ldm sample MODEL`: images from a model, under any guidance."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoencoders import Tiling
from ldm.cli.default_folder import default_folder, name_of
from ldm.cli.editing import PreparedEdit, prepare
from ldm.cli.parsing import check_model_folder, parse, require
from ldm.cli.sample_folder import SampleFolder, check_output, is_unfinished
from ldm.cli.sample_settings import SampleRun, check_without_diffusion, requests_of
from ldm.runtime.device import check_device, resolve_device
from ldm.runtime.distributed import Processes, torchrun_processes
from ldm.runtime.errors import LARGEST, LARGEST_BATCH, LARGEST_SEED, UserError, in_range
from ldm.runtime.files import sha256_of_file
from ldm.runtime.progress import progress
from ldm.runtime.stopping import GOES_ON, kept_when_stopped
from ldm.runtime.text import counted
from ldm.sampling.config import Request, check_names
from samplers import parse_call

if TYPE_CHECKING:  # wrong flags are refused before torch is imported
    import torch

    from ldm.sampling.image_model import ImageModel, Plan

logger = logging.getLogger("ldm")


@dataclass(frozen=True)
class Ready:
    """All that was checked before the first image is drawn."""

    folder: Path
    model: ImageModel[Any]
    requests: list[Request]
    plan: Plan
    seed: int
    first: int
    edit: PreparedEdit | None
    notes: tuple[str, ...]
    defaults: str
    """What the settings leave open, in one line to print."""


def run(arguments: list[str]) -> None:
    """Sample, and print where the images are; under torchrun on all its processes, of which the first writes."""
    with torchrun_processes() as processes:
        settings, device = processes.run_on_all(lambda: _settings(arguments))
        ready = processes.run_on_all(lambda: _prepare(settings, processes.device(device)))
        _sample(settings, ready, processes)


def _settings(arguments: list[str]) -> tuple[SampleRun, torch.device]:
    _refuse_text(arguments)
    settings = parse(SampleRun, arguments, "sample")
    require(settings.model, "MODEL", "a model folder or the output folder of `ldm train diffusion`")
    in_range(settings, num_images=(1, LARGEST), first_index=(0, LARGEST), batch_size=(1, LARGEST_BATCH))
    in_range(settings, seed=(-LARGEST_SEED, LARGEST_SEED))
    settings.editing.check()
    if not settings.output_dir:
        settings = dataclasses.replace(
            settings, output_dir=default_folder("samples", name_of(settings.model), is_unfinished)
        )
    check_output(settings.output_dir)
    check_names(settings.sampling)
    check_device(settings.device)
    check_model_folder(settings.model)
    return settings, resolve_device(settings.device)


def _refuse_text(arguments: list[str]) -> None:
    """`UserError` for a text to draw that stands beside the model folder, or in its place."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    texts = [word for word in words if not Path(word).exists()]
    spaced = [word for word in texts if " " in word.strip()]
    if spaced or (texts and len(words) > 1):
        text = (spaced or texts)[-1]
        raise UserError(f'"{text}": no such folder', remedy=f'for a text to draw use --prompt "{text}"')


def _prepare(settings: SampleRun, device: torch.device) -> Ready:
    from ldm.cli.outputs import check_tiling, read_settings_of
    from ldm.sampling.checks import check_used
    from ldm.sampling.energies import files_of
    from ldm.sampling.loading import load_model
    from ldm.sampling.pipeline import Pipeline

    model = load_model(settings.model, **settings.loading(device))
    sampling, seed, first = settings.sampling, settings.seed, settings.first_index
    flags, record = settings.editing, None
    if isinstance(model, Pipeline):
        check_tiling(settings.tiling, model.networks.autoencoder)
        model.tiling = settings.tiling
    else:
        check_without_diffusion(settings, model.supported_settings)
    if settings.recreate:
        request, sampling, numbers, record = read_settings_of(settings.recreate)
        if unnamed := sorted(set(files_of(sampling.energy)) - set(settings.sampling.energy)):
            raise UserError(f"--recreate: its energies read files ({unnamed[0]}); allow it by giving that --energy")
        requests, seed, first = [request], numbers["seed"], numbers["index"]
        if record is None and (flags.init_image or flags.invert):
            raise UserError(f"--recreate {settings.recreate}: it was made from noise; leave out the source image")
        if record is not None and not isinstance(model, Pipeline):
            raise UserError(f"--recreate {settings.recreate}: it was made by a diffusion model from another image")
        flags = record.flags(flags, settings.recreate) if record is not None else flags
    else:
        requests = requests_of(settings, model)
    if isinstance(model, Pipeline):
        check_used(sampling)
    resolved = model.with_defaults(sampling, requests)
    plan, edit = model.resolve(resolved), None
    model.check(requests, plan)
    if isinstance(model, Pipeline) and (edit := prepare(flags, model, requests, plan, record)):
        plan = plan.begin_at(edit.edit.start)
    folder = check_output(settings.output_dir)
    taken = model.defaults.taken(sampling, resolved) if isinstance(model, Pipeline) else ""
    line = f"defaults: {taken}" if taken else ""
    return Ready(folder, model, requests, plan, seed, first, edit, model.notes(requests, plan), line)


def _sample(settings: SampleRun, ready: Ready, processes: Processes) -> None:
    from ldm.sampling.effects import without_effect
    from ldm.sampling.pipeline import Pipeline

    start, edit, model, size = time.monotonic(), ready.edit, ready.model, settings.batch_size
    total, folder = len(ready.requests), _folder(settings, ready)
    with processes.lock(ready.folder, "sampling"), kept_when_stopped(lambda: _stopped(folder)):
        replace: Literal["nothing", "complete"] = "complete" if settings.overwrite else "nothing"
        missing = processes.run_on_main_and_broadcast(lambda: folder.missing_batches(size, replace))
        if ready.defaults and processes.is_main:
            print(ready.defaults, flush=True)
        for note in ready.notes if processes.is_main else ():
            logger.warning("note: %s", note)
        processes.warn_if_idle(total, size)
        batches = model.generate(
            ready.requests,
            ready.plan,
            seed=ready.seed,
            first_index=ready.first,
            batch_size=size,
            shard=processes.shard,
            batches=missing,
        )
        if edit is not None:
            batches = map(edit.edit.finish, batches)
        in_order = processes.gather_batches(batches, len(missing))
        if not processes.is_main:
            for _ in in_order:
                raise RuntimeError("only the first process has images to write")
            processes.gather(model.evaluations)
            return
        count = -(-total // size)
        bar = progress(in_order, "sample (batches)", total=count, initial=count - len(missing))
        folder.write(bar, missing, size)
        grid = folder.finish()
    seconds = time.monotonic() - start
    evaluations = sum(processes.gather(model.evaluations))
    cost = f"{counted(evaluations, 'network evaluation', 'network evaluations')}, "
    cost = cost if isinstance(model, Pipeline) else ""
    there = total - sum(min(size, total - number * size) for number in missing)
    print(f"{counted(total, 'image')}{f' ({there} there before)' if there else ''}, {cost}{seconds:.1f} s: {grid}")
    for line in edit.lines if edit is not None else ():
        print(line)
    for note in without_effect(model.effects, ready.notes):
        logger.warning("note: %s", note)


def _folder(settings: SampleRun, ready: Ready) -> SampleFolder:
    from ldm.sampling.identity import identity_of
    from ldm.sampling.pipeline import Pipeline

    edit, loaded = ready.edit, {}
    if isinstance(ready.model, Pipeline):
        loaded = {"classifier": list(settings.classifier), "weak": settings.weak}
    fingerprint: dict[str, Any] = {"model": identity_of(ready.model, settings.model, settings.weak)}
    calls = [parse_call(text) for text in ready.plan.config.energy]
    words = [word for _, values, options in calls for word in (*values, *options.values()) if isinstance(word, str)]
    fingerprint |= {f"file {Path(word).name}": sha256_of_file(word) for word in words if Path(word).is_file()}
    fingerprint |= {"tiling": asdict(settings.tiling)} if settings.tiling != Tiling() else {}
    return SampleFolder(
        ready.folder,
        ready.requests,
        ready.plan.config,
        {"model": settings.model, **loaded, "seed": ready.seed, "first_index": ready.first},
        fingerprint,
        edit=edit.record if edit is not None else None,
        beside=edit.beside if edit is not None else None,
    )


def _stopped(folder: SampleFolder) -> str:
    count = len(folder.present())
    return f"stopped after {count} of {len(folder.requests)} images; {GOES_ON}" if count else "stopped"
