"""`ldm sample FOLDER` where the folder's model draws without diffusion."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ldm.cli.outputs import read_settings_of, write_samples
from ldm.cli.sample_settings import SampleRun, in_turn
from ldm.conditioning import class_id
from ldm.runtime.errors import UserError
from ldm.runtime.progress import progress
from ldm.sampling.config import Request
from ldm.sampling.single_pass import ImageModel

_WITHOUT = "this model draws without diffusion; leave it out, or give the output folder of `ldm train diffusion`"


def draw(settings: SampleRun, model: ImageModel, folder: Path) -> None:
    """Write the pictures and say where they are; `UserError` for a setting that only diffusion obeys."""
    check_settings(settings, model.supported_settings)
    sampling = settings.sampling
    if settings.recreate:
        request, sampling, facts, record = read_settings_of(settings.recreate)
        if record is not None:
            raise UserError(f"--recreate {settings.recreate}: it was made by a diffusion model from another picture")
        requests, seed, first = [request], facts["seed"], facts["index"]
    else:
        requests, seed, first = requests_of(settings, model), settings.seed, settings.first_index
    model.check(requests, sampling)
    start = time.monotonic()
    batches = model.generate(requests, sampling, seed=seed, first_index=first, batch_size=settings.batch_size)
    count = -(-len(requests) // settings.batch_size)
    shown = write_samples(
        folder,
        progress(batches, "sample (batches)", total=count),
        requests,
        sampling,
        {"model": settings.model, "seed": seed, "first_index": first},
    )
    print(f"{len(requests)} pictures, {time.monotonic() - start:.1f} s: {shown}")


def check_settings(settings: SampleRun, supported: Sequence[str] = ()) -> None:
    """Refuse what only diffusion obeys, by the name of the flag; `supported` are fields that act here too."""
    plain = SampleRun()
    if settings.classifier or settings.weak:
        raise UserError(f"--{'classifier' if settings.classifier else 'weak'}: {_WITHOUT}")
    for group in ("sampling", "editing", "tiling"):
        check_supported(getattr(settings, group), supported, getattr(plain, group))


def check_supported(given: object, supported: Sequence[str], plain: object | None = None) -> None:
    """Refuse settings that differ from the `plain` ones and are not `supported`."""
    plain = type(given)() if plain is None else plain
    names = [each.name for each in fields(given)]  # type: ignore[arg-type]
    changed = [name for name in names if getattr(given, name) != getattr(plain, name) and name not in supported]
    if changed:
        raise UserError(f"--{changed[0].replace('_', '-')}: {_WITHOUT}")


def requests_of(settings: SampleRun, model: ImageModel) -> list[Request]:
    """The conditions of each picture; of a model of classes that is told nothing, all of them in turn."""
    names = model.class_names
    if not names and (settings.class_label or settings.negative_class is not None):
        raise UserError("--class-label, --negative-class: this model knows no classes; leave them out")
    labels: list[int | None] = [class_id(name, names) for name in settings.class_label]
    if not labels and names and not settings.prompt:
        labels = list(range(len(names)))
    negative = None if settings.negative_class is None else class_id(settings.negative_class, names)
    return in_turn(settings, labels, negative, range(settings.first_index, settings.first_index + settings.num_images))
