"""`ldm compare autoencoders RUN RUN ...`: autoencoders side by side on the same held-out images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ldm.cli.data_report import show_data
from ldm.cli.default_folder import default_folder
from ldm.cli.evaluate_autoencoder import load_autoencoder, run_of, settings_of
from ldm.cli.parsing import parse, require
from ldm.cli.tables import terminal_width
from ldm.data.config import DataConfig
from ldm.evaluation.autoencoder.config import AutoencoderEvaluationConfig
from ldm.runtime.device import check_device, resolve_device
from ldm.runtime.errors import UserError, at_least
from ldm.runtime.files import log_entries
from ldm.runtime.text import printable
from ldm.training.run_folder import read_run

if TYPE_CHECKING:
    from autoencoders import Autoencoder
    from ldm.comparison.autoencoders.compare import Candidate
    from ldm.data.dataset import ImageData
    from ldm.training.tasks.settings import AutoencoderRun

_MAX_LINES = 10**6  # of metrics.jsonl


@dataclass(frozen=True)
class CompareAutoencodersRun:
    """Evaluate autoencoders on the same held-out images: a table, a rate-distortion plot and reconstructions."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ()
    """Output folders of `ldm train autoencoder`, or folders `vae` of models; named by their folders."""
    evaluation: AutoencoderEvaluationConfig = field(default_factory=AutoencoderEvaluationConfig)
    dataset: DataConfig = field(default_factory=DataConfig)
    split: str = "validation"
    """Which images of the data are reconstructed: train or validation."""
    columns: int = 10
    """Images on reconstructions.png."""
    output_dir: str = ""
    """New or empty folder, or that of the same comparison, which is then continued; unset: comparisons/autoencoders-1,
    or the next number that is free or was stopped."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    ignore_manifest: bool = False
    """Take folders as they are where they are not as they were published, for those who edit models."""

    def __post_init__(self) -> None:
        at_least(self, columns=1)


def run(arguments: list[str]) -> None:
    """Compare and print the table."""
    settings = parse(CompareAutoencodersRun, arguments, "compare autoencoders")
    require(settings.runs, "RUN", "the output folders of `ldm train autoencoder`")
    if not settings.output_dir:
        folder = default_folder("comparisons", "autoencoders", lambda path: not (path / "autoencoders.json").is_file())
        settings = replace(settings, output_dir=folder)
    check_device(settings.device)
    from ldm.comparison.autoencoders.compare import compare_autoencoders
    from ldm.data.open import open_data

    _check_output(settings.output_dir, settings.runs)
    names = names_of(settings.runs)
    models = [load_autoencoder(folder, ignore_manifest=settings.ignore_manifest) for folder in settings.runs]
    trainings = [settings_of(folder) for folder in settings.runs]
    datasets = [training.dataset for training in trainings if training is not None]
    if datasets:
        base = CompareAutoencodersRun(dataset=datasets[0])
        settings = parse(CompareAutoencodersRun, arguments, "compare autoencoders", base)
    _check_size(names, trainings, settings.dataset.image_size)
    candidates = [
        _candidate(name, folder, model, training)
        for name, folder, model, training in zip(names, settings.runs, models, trainings, strict=True)
    ]
    device = resolve_device(settings.device)
    data, train = open_data(settings.dataset, settings.split), open_data(settings.dataset, "train")
    _check_images(names, settings, train)
    show_data(data.report)
    comparison = compare_autoencoders(
        candidates,
        data,
        settings.evaluation,
        output_dir=settings.output_dir,
        train_data=train,
        columns=settings.columns,
        device=device,
    )
    print(comparison.table(terminal_width()))
    for warning in comparison.warnings:
        print(f"note: {warning}")
    print(f"wrote {settings.output_dir}: autoencoders.json, .txt and .csv, rate-distortion.png and .svg, "
          "reconstructions.png")  # fmt: skip


def names_of(folders: Sequence[str]) -> list[str]:
    """A name for each run: the shortest unique end of its folder; printable."""
    paths = [Path(folder).resolve() for folder in folders]
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"{printable(folder)}: is given twice")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return [printable(name) for name in names]


def _check_output(output_dir: str, runs: Sequence[str]) -> None:
    """A run stays as it is: no comparison is written into one."""
    target = Path(output_dir).resolve()
    for folder in runs:
        if target == Path(folder).resolve() or Path(folder).resolve() in target.parents:
            raise UserError(f"--output-dir {output_dir}: lies in the run {folder}; choose another")


def _check_size(names: Sequence[str], trainings: Sequence[AutoencoderRun | None], size: int) -> None:
    for name, training in zip(names, trainings, strict=True):
        if training is not None and training.dataset.image_size != size:
            own_size = training.dataset.image_size
            raise UserError(f"{name}: was trained on images of {own_size} pixels, the comparison is on {size}")


def _check_images(names: Sequence[str], settings: CompareAutoencodersRun, train: ImageData) -> None:
    """`UserError` for a run that was trained on other images: some may be held out here."""
    for name, folder in zip(names, settings.runs, strict=True):
        root = run_of(folder)
        if root is not None and read_run(root)["facts"].get("data") != train.fingerprint:
            data = f"{train.name} with its present held-out part"
            raise UserError(f"{name}: was trained on other images than {data}; compare runs of the same data")


def _candidate(name: str, folder: str, model: Autoencoder, training: AutoencoderRun | None) -> Candidate:
    from ldm.comparison.autoencoders.compare import Candidate

    root = run_of(folder)
    if training is None or root is None:
        return Candidate(name, model)
    closed_form = model.config.coder_kind == "linear"
    cost = (None, None) if closed_form else training_cost(root, training.training.train_batch_size)
    return Candidate(name, model, training.loss, *cost)


def training_cost(run: Path, batch_size: int) -> tuple[int | None, float | None]:
    """The last step that a run logged, and the seconds that its steps took, both None where it logged none."""
    seconds, last_step = 0.0, 0
    path = run / "metrics.jsonl"
    if not path.is_file():
        return None, None
    for entry in itertools.islice(log_entries(path), _MAX_LINES):
        step, speed = entry["step"], entry.get("images_per_second")
        if isinstance(speed, int | float) and speed > 0 and step > last_step:
            seconds += (step - last_step) * batch_size / speed
            last_step = step
    return (last_step, seconds) if last_step else (None, None)
