"""`ldm evaluate reference DATA`: statistics of real images in one file, for other machines and later comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from ldm.cli.data_report import show_data
from ldm.cli.parsing import parse, require
from ldm.data.config import DataConfig
from ldm.evaluation.config import EvaluationConfig
from ldm.runtime.errors import UserError
from ldm.runtime.text import counted


@dataclass(frozen=True)
class ReferenceRun:
    """Make a reference file: features of real images, their mean and covariance, what they are of and by, and features
    of the other split for the floor. `ldm evaluate` and `ldm compare` take it as --reference FILE."""

    of: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ""
    """As --data: shapes, cifar10, ... or a folder of images."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    dataset: DataConfig = field(default_factory=DataConfig)
    split: str = "validation"
    """Which images are the reference: train or validation."""
    output: str = ""
    """The file to write, such as reference.npz."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def run(arguments: list[str]) -> None:
    """Make the file and print what is in it."""
    settings = parse(ReferenceRun, arguments, "evaluate reference")
    from ldm.data.open import open_data, other_split
    from ldm.evaluation.evaluators import prepare_extractor
    from ldm.evaluation.references import save_reference
    from ldm.runtime.device import resolve_device

    dataset = settings.dataset
    if settings.of:
        if dataset.data not in (DataConfig.data, settings.of):
            raise UserError(f"{settings.of}, --data {dataset.data}: name the data once")
        dataset = replace(dataset, data=settings.of)
    require(settings.output, "--output", "the file to write, such as reference.npz")
    if not settings.output.endswith(".npz") or Path(settings.output).is_dir():
        raise UserError(f"--output {settings.output}: expected the name of a file that ends in .npz")
    if settings.evaluation.reference:
        raise UserError("--reference: is what this command makes; leave it out")
    device = resolve_device(settings.device)
    data, train = open_data(dataset, settings.split), open_data(dataset, "train")
    if len(data) < 2:
        raise UserError(f"{data.name}: {len(data)} image of {settings.split}; statistics need two or more")
    show_data(data.report)
    extractor = prepare_extractor(train, settings.evaluation, device=device)
    other = other_split(dataset, settings.split)
    metadata = save_reference(settings.output, extractor, data, other, settings.evaluation)
    count = min(settings.evaluation.num_reference, len(data))
    name = f"{metadata.data} ({metadata.split}, {metadata.image_size} pixels)"
    print(f"{counted(count, 'image')} of {name}, {metadata.data_fingerprint[:8]}")
    print(f"extractor {metadata.extractor} ({extractor.dim} dimensions); preprocessing {metadata.preprocessing}")
    print(f"wrote {settings.output}")
