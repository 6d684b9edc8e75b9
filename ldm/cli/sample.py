"""`ldm sample MODEL`: images from a model, under any guidance."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.cli.editing import PreparedEdit, prepare
from ldm.cli.outputs import check_output, check_tiling, read_settings_of, write_samples
from ldm.cli.parsing import parse, require
from ldm.cli.sample_settings import SampleRun, check_without_diffusion, requests_of
from ldm.runtime.device import resolve_device
from ldm.runtime.distributed import Processes, torchrun_processes
from ldm.runtime.errors import UserError, at_least
from ldm.runtime.progress import progress
from ldm.runtime.text import counted
from ldm.sampling.checks import check_used
from ldm.sampling.config import Request
from ldm.sampling.energies import files_of
from ldm.sampling.image_model import ImageModel, Plan
from ldm.sampling.loading import load_model
from ldm.sampling.pipeline import Pipeline

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
    at_least(settings, num_images=1, batch_size=1, first_index=0)
    settings.editing.check()
    check_output(settings.output_dir, settings.overwrite)
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
    plan, edit = model.resolve(sampling), None
    model.check(requests, plan)
    if isinstance(model, Pipeline) and (edit := prepare(flags, model, requests, plan, record)):
        plan = plan.begin_at(edit.edit.start)
    folder = check_output(settings.output_dir, settings.overwrite)
    return Ready(folder, model, requests, plan, seed, first, edit, model.notes(requests, plan))


def _sample(settings: SampleRun, ready: Ready, processes: Processes) -> None:
    start, edit, model = time.monotonic(), ready.edit, ready.model
    diffusion = isinstance(model, Pipeline)
    if processes.is_main:
        for note in ready.notes:
            logger.warning("note: %s", note)
    processes.warn_if_idle(len(ready.requests), settings.batch_size)
    batches = model.generate(
        ready.requests,
        ready.plan,
        seed=ready.seed,
        first_index=ready.first,
        batch_size=settings.batch_size,
        shard=processes.shard,
    )
    if edit is not None:
        batches = map(edit.edit.finish, batches)
    count = -(-len(ready.requests) // settings.batch_size)
    in_order = processes.gather_batches(batches, count)
    if not processes.is_main:
        for _ in in_order:
            raise RuntimeError("only the first process has images to write")
        processes.gather(model.evaluations)
        return
    loaded = {"classifier": list(settings.classifier), "weak": settings.weak} if diffusion else {}
    grid = write_samples(
        ready.folder,
        progress(in_order, "sample (batches)", total=count),
        ready.requests,
        ready.plan.config,
        {"model": settings.model, **loaded, "seed": ready.seed, "first_index": ready.first},
        edit=edit.record if edit is not None else None,
        beside=edit.beside if edit is not None else None,
    )
    seconds = time.monotonic() - start
    evaluations = sum(processes.gather(model.evaluations))
    cost = counted(evaluations, "network evaluation", "network evaluations") + ", " if diffusion else ""
    print(f"{counted(len(ready.requests), 'image')}, {cost}{seconds:.1f} s: {grid}")
    for line in edit.lines if edit is not None else ():
        print(line)
    for effect in model.effects:
        if effect.note and not any(note.startswith(effect.name) for note in ready.notes):
            logger.warning("note: %s", effect.note)
