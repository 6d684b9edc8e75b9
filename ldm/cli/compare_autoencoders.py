"""`ldm compare autoencoders RUN RUN ...`: autoencoders side by side on the same held-out images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ldm.cli.evaluate_autoencoder import load_autoencoder, run_of, settings_of
from ldm.cli.parsing import parse
from ldm.data import DataConfig
from ldm.evaluation import AutoencoderEvaluationConfig
from ldm.runtime.errors import UserError
from ldm.runtime.files import log_entries, read_json
from ldm.runtime.text import printable
from ldm.training.run_folder import RUN_FILE

if TYPE_CHECKING:
    from ldm.comparison.autoencoders.compare import Candidate
    from ldm.data import ImageData
    from ldm.training.tasks.settings import AutoencoderRun

_LINES = 10**6  # of metrics.jsonl; more are not read


@dataclass(frozen=True)
class CompareAutoencodersRun:
    """Measure autoencoders on the same held-out images: a table, a rate-distortion plot, a page of reconstructions."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ()
    """Output folders of `ldm train autoencoder`, or folders `vae` of models; named by their folders."""
    evaluation: AutoencoderEvaluationConfig = field(default_factory=AutoencoderEvaluationConfig)
    dataset: DataConfig = field(default_factory=DataConfig)
    split: str = "validation"
    """Which images of the data are measured on: train or validation."""
    columns: int = 10
    """Images on the page of reconstructions."""
    output_dir: str = ""
    """New or empty folder, or that of the same comparison, which is then continued."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise UserError(f"--columns: expected 1 or more, got {self.columns}")


def run(arguments: list[str]) -> None:
    """Compare and print the table."""
    settings = parse(CompareAutoencodersRun, arguments, "compare autoencoders")
    from ldm.comparison.autoencoders.compare import compare_autoencoders
    from ldm.data import open_data
    from ldm.runtime.device import resolve_device

    if not settings.runs:
        raise UserError("RUN is missing: give the output folders of `ldm train autoencoder`")
    if not settings.output_dir:
        raise UserError("--output-dir is missing: give the folder to write to")
    _check_output(settings.output_dir, settings.runs)
    names = names_of(settings.runs)
    models = [load_autoencoder(folder) for folder in settings.runs]
    trained = [settings_of(folder) for folder in settings.runs]
    own = [each.dataset for each in trained if each is not None]
    if own:
        base = CompareAutoencodersRun(dataset=own[0])
        settings = parse(CompareAutoencodersRun, arguments, "compare autoencoders", base)
    _check_size(names, trained, settings.dataset.image_size)
    candidates = [
        _candidate(name, folder, model, run)
        for name, folder, model, run in zip(names, settings.runs, models, trained, strict=True)
    ]
    device = resolve_device(settings.device)
    data, train = open_data(settings.dataset, settings.split), open_data(settings.dataset, "train")
    _check_images(names, settings, train)
    found = compare_autoencoders(
        candidates,
        data,
        settings.evaluation,
        output_dir=settings.output_dir,
        train_data=train,
        shown=settings.columns,
        device=device,
    )
    print(found.table())
    for warning in found.warnings:
        print(f"note: {warning}")
    print(f"wrote {settings.output_dir}: autoencoders.json, .txt and .csv, rate-distortion.png and .svg, "
          "reconstructions.png")  # fmt: skip


def names_of(folders: Sequence[str]) -> list[str]:
    """What the runs are called: the last part of each folder that tells it from the others; printable."""
    places = [Path(folder).resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{printable(folder)}: is given twice")
    most = max(len(place.parts) for place in places)
    for depth in range(1, most + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            break
    return [printable(name) for name in names]


def _check_output(output_dir: str, runs: Sequence[str]) -> None:
    """A run stays as it is: no comparison is written into one."""
    target = Path(output_dir).resolve()
    for folder in runs:
        if target == Path(folder).resolve() or Path(folder).resolve() in target.parents:
            raise UserError(f"--output-dir {output_dir}: lies in the run {folder}; choose another")


def _check_size(names: Sequence[str], trained: Sequence[AutoencoderRun | None], size: int) -> None:
    for name, each in zip(names, trained, strict=True):
        if each is not None and each.dataset.image_size != size:
            theirs = each.dataset.image_size
            raise UserError(f"{name}: was trained on images of {theirs} pixels, the comparison is on {size}")


def _check_images(names: Sequence[str], settings: CompareAutoencodersRun, train: ImageData) -> None:
    """`UserError` for a run that was trained on other images: it may have seen those that are held out here."""
    for name, folder in zip(names, settings.runs, strict=True):
        place = run_of(folder)
        if place is not None and read_json(place / RUN_FILE).get("facts", {}).get("data") != train.fingerprint:
            ours = f"{train.name} with its present held-out part"
            raise UserError(f"{name}: was trained on other images than {ours}; compare runs of the same data")


def _candidate(name: str, folder: str, model: object, trained: AutoencoderRun | None) -> Candidate:
    from autoencoders import Autoencoder
    from ldm.comparison.autoencoders.compare import Candidate

    assert isinstance(model, Autoencoder)
    found = Candidate(name, model)
    place = run_of(folder)
    if trained is None or place is None:
        return found
    found = replace(found, loss=trained.loss)
    if model.config.bottleneck == "linear":
        return found
    steps, seconds = training_cost(place, trained.training.train_batch_size)
    return replace(found, steps=steps, seconds=seconds)


def training_cost(run: Path, batch_size: int) -> tuple[int | None, float | None]:
    """The last step that a run logged, and the seconds that its steps took, both None where it logged none."""
    seconds, before, last = 0.0, 0, None
    path = run / "metrics.jsonl"
    if not path.is_file():
        return None, None
    for entry in itertools.islice(log_entries(path), _LINES):
        step, speed = entry["step"], entry.get("images_per_second")
        if isinstance(speed, int | float) and speed > 0 and step > before:
            seconds += (step - before) * batch_size / speed
            before = last = step
    return last, seconds if last else None
