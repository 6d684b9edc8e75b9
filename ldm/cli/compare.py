"""`ldm compare MODEL`: guidance methods and scales on the same seeds and conditions."""

from __future__ import annotations

import importlib
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.data_report import show_data
from ldm.cli.default_folder import default_folder, name_of
from ldm.cli.evaluate import check_size, parse_for_model
from ldm.cli.model_options import ModelOptions
from ldm.cli.parsing import require
from ldm.cli.tables import terminal_width
from ldm.comparison import ComparisonConfig
from ldm.comparison.config import METRICS_OF_COMPARISONS
from ldm.data.config import DataConfig
from ldm.evaluation.config import EvaluationConfig
from ldm.runtime.device import check_device, resolve_device
from ldm.runtime.distributed import torchrun_processes
from ldm.runtime.text import counted
from ldm.sampling.config import SamplingConfig, check_names

if TYPE_CHECKING:  # wrong flags are refused before torch is imported
    import torch

    from ldm.comparison import Comparison
    from ldm.data.dataset import ImageData
    from ldm.sampling.pipeline import Pipeline


@dataclass(frozen=True)
class CompareRun(ModelOptions):
    """Sample the same seeds and conditions under each method and scale; a table, JSON, one image and a report of all.
    `ldm compare autoencoders RUN RUN ...` compares autoencoders, `ldm compare results FILE FILE ...` shows the results
    of several evaluations side by side."""

    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(metrics=METRICS_OF_COMPARISONS))
    dataset: DataConfig = field(default_factory=DataConfig)
    split: str = "validation"
    """Which images of the data are the reference: train or validation."""
    output_dir: str = ""
    """New or empty folder, or that of the same comparison, which is then continued; unset: comparisons/MODEL-1, or the
    next number that is free or was stopped."""


def run(arguments: list[str]) -> None:
    """Compare and print the table; under torchrun on all its processes, of which the main one writes."""
    with torchrun_processes() as processes:
        if arguments[:1] in (["autoencoders"], ["results"]):
            module = importlib.import_module(f"ldm.cli.compare_{arguments[0]}")
            return processes.run_on_main_and_broadcast(lambda: module.run(arguments[1:]))
        settings, device = processes.run_on_all(lambda: _settings(arguments))
        from ldm.comparison.compare import compare
        from ldm.data.open import other_split
        from ldm.sampling.identity import identity_of

        pipeline, reference, train = processes.run_on_all(lambda: _load(settings, processes.device(device)))
        show_data(reference.report)
        comparison = compare(
            pipeline,
            reference,
            settings.comparison,
            output_dir=settings.output_dir,
            sampling=settings.sampling,
            evaluation=settings.evaluation,
            train_data=train,
            other_data=other_split(settings.dataset, settings.split),
            model=identity_of(pipeline, settings.model, settings.weak),
            name=Path(settings.model).resolve().name,
            command=shlex.join(["ldm", "compare", *arguments]),
            processes=processes,
        )
        if processes.is_main:
            _print(settings, comparison)


def _settings(arguments: list[str]) -> tuple[CompareRun, torch.device]:
    settings = parse_for_model(CompareRun, arguments, "compare")
    require(settings.model, "MODEL", "a model folder or the output folder of `ldm train diffusion`")
    if not settings.output_dir:
        folder = default_folder("comparisons", name_of(settings.model), _is_unfinished)
        settings = replace(settings, output_dir=folder)
    check_names(settings.sampling)
    check_device(settings.device)
    return settings, resolve_device(settings.device)


def _is_unfinished(folder: Path) -> bool:
    return not (folder / "comparison.json").is_file()


def _load(settings: CompareRun, device: torch.device) -> tuple[Pipeline, ImageData, ImageData]:
    from ldm.data.open import open_data
    from ldm.sampling.pipeline import Pipeline

    pipeline = Pipeline.load(settings.model, **settings.loading(device))
    reference, train = open_data(settings.dataset, settings.split), open_data(settings.dataset, "train")
    check_size(pipeline, reference.image_size)
    return pipeline, reference, train


def _print(settings: CompareRun, comparison: Comparison) -> None:
    from ldm.comparison import rank_comparison

    for round_ in comparison.rounds:
        left = f"; left: {', '.join(round_.eliminated)}" if round_.eliminated else ""
        print(f"{counted(round_.num_images, 'sample')} of each of {counted(len(round_.runs), 'run')}{left}")
    print(comparison.table(terminal_width()))
    print(rank_comparison(comparison, settings.comparison).sentence)
    for method, reason in comparison.left_out.items():
        print(f"left out: {method}: {reason}")
    for warning in comparison.warnings:
        print(f"note: {warning}")
    print(f"wrote {settings.output_dir}/report.html, comparison.json, .csv, .txt and .png")
