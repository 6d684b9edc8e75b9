"""`ldm ema RUN --length L`: a model of another averaging length, after the training."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from ldm.cli.default_folder import default_folder, name_of
from ldm.cli.parsing import check_model_folder, check_new_folder, parse, require
from ldm.runtime.text import counted
from ldm.training.config import check_length

_LARGE_ERROR = 0.1  # of the profile, above which the user is warned


@dataclass(frozen=True)
class EmaRun:
    """Make a model whose weights are averaged over another length than the published one's, from the snapshots that
    `ldm train diffusion --ema-lengths 0.05 0.1` kept."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """Output folder of `ldm train diffusion`."""
    length: float = 0.1
    """Standard deviation of the averaging profile, relative to the training up to the step."""
    step: int | None = None
    """The step after which the average is taken, one with a snapshot; unset: the last."""
    output_dir: str = ""
    """New model folder; `ldm sample` and its --weak take it. Unset: models/RUN-ema-1, or the next free number."""
    ignore_manifest: bool = False
    """Take the run's model as it is where it is not as it was published, for those who edit models."""


def run(arguments: list[str]) -> None:
    """Reconstruct, write the folder, say how exact the profile is."""
    settings = parse(EmaRun, arguments, "ema")
    require(settings.run, "RUN", "the output folder of `ldm train diffusion`")
    if not settings.output_dir:
        settings = replace(settings, output_dir=default_folder("models", f"{name_of(settings.run)}-ema"))
    check_new_folder(settings.output_dir, "--output-dir")
    check_length(settings.length, "length")
    check_model_folder(settings.run)
    from ldm.training.averages import reconstruct
    from ldm.training.tasks.published import write_reconstruction

    average = reconstruct(Path(settings.run), settings.length, settings.step)
    write_reconstruction(
        Path(settings.run), average, Path(settings.output_dir), ignore_manifest=settings.ignore_manifest
    )
    print(f"length {settings.length:g} after step {average.step} from {counted(average.snapshots, 'snapshot')}")
    print(f"profile error: {average.error:.2%}")
    if average.error > _LARGE_ERROR:
        print("ldm: these snapshots fit that length poorly; take more of them, or a nearer length", file=sys.stderr)
    print(f"wrote {settings.output_dir}")
