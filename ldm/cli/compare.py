"""`ldm compare MODEL`: guidance methods and scales on the same seeds and conditions; `compare autoencoders`: those."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ldm.cli.evaluate import check_size, other_split, parse_for_model
from ldm.comparison import ComparisonConfig, compare, model_identity, verdict_of
from ldm.config import Repeated
from ldm.data import DataConfig
from ldm.errors import UserError
from ldm.evaluation import EvaluationConfig
from ldm.pipeline import Pipeline, SamplingConfig

METRICS_OF_COMPARISONS = ("fid", "kid", "precision", "recall", "coverage")


@dataclass(frozen=True)
class CompareRun:
    """Sample the same seeds and conditions under each method and scale; a table, JSON and one picture of them all.
    `ldm compare autoencoders RUN RUN ...` compares autoencoders."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = ""
    """Model folder."""
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(metrics=METRICS_OF_COMPARISONS))
    dataset: DataConfig = field(default_factory=DataConfig)
    split: str = "validation"
    """Which images of the data are the reference: train or validation."""
    classifier: Repeated = ()
    """Output folder of `ldm train classifier`, where the model folder holds none; repeat the flag for several, which
    are the branches classifier, classifier2, ..., or name them: NAME=FOLDER."""
    weak: str = ""
    """The weak network of autoguidance: another model or run folder, or RUN/checkpoint-STEP."""
    output_dir: str = ""
    """New or empty folder, or that of the same comparison, which is then continued."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def run(arguments: list[str]) -> None:
    """Compare and print the table."""
    if arguments[:1] == ["autoencoders"]:
        from ldm.cli import compare_autoencoders

        return compare_autoencoders.run(arguments[1:])
    settings = parse_for_model(CompareRun, arguments, "compare")
    from ldm.data import open_data
    from ldm.device import resolve_device

    if not settings.model:
        raise UserError("MODEL is missing: give a model folder or the output folder of `ldm train diffusion`")
    if not settings.output_dir:
        raise UserError("--output-dir is missing: give the folder to write to")
    pipeline = Pipeline.load(
        settings.model,
        device=resolve_device(settings.device),
        classifier=settings.classifier or None,
        weak=settings.weak or None,
    )
    reference, train = open_data(settings.dataset, settings.split), open_data(settings.dataset, "train")
    check_size(pipeline, reference.image_size)
    guides = pipeline.networks.guides.values()
    apart = [guide.folder.parent for guide in guides] + ([settings.weak] if settings.weak else [])
    found = compare(
        pipeline,
        reference,
        settings.comparison,
        output_dir=settings.output_dir,
        sampling=settings.sampling,
        evaluation=settings.evaluation,
        train_data=train,
        other_data=other_split(settings.dataset, settings.split),
        model=model_identity(settings.model, *apart),
        name=Path(settings.model).resolve().name,
        command=shlex.join(["ldm", "compare", *arguments]),
    )
    print(found.table())
    print(verdict_of(found, settings.comparison).sentence)
    for method, reason in found.left_out.items():
        print(f"left out: {method}: {reason}")
    for warning in found.warnings:
        print(f"note: {warning}")
    print(f"wrote {settings.output_dir}/report.html, comparison.json, .csv, .txt and .png")
