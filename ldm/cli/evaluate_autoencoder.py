"""`ldm evaluate RUN` where RUN is an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ldm.cli.parsing import check_file, check_new_folder, parse
from ldm.data.config import DataConfig
from ldm.evaluation.autoencoder.config import AutoencoderEvaluationConfig
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import atomic_write_json, read_json
from ldm.sampling.config import INDEX
from ldm.training.run_folder import RUN_FILE, read_run, recorded_settings

if TYPE_CHECKING:
    from autoencoders import Autoencoder
    from ldm.training.tasks.settings import AutoencoderRun


@dataclass(frozen=True)
class EvaluateAutoencoderRun:
    """Measures of an autoencoder on held-out images: of its reconstructions, its rate and its latents."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """Output folder of `ldm train autoencoder`, or the folder `vae` of a model."""
    evaluation: AutoencoderEvaluationConfig = field(default_factory=AutoencoderEvaluationConfig)
    dataset: DataConfig = field(default_factory=DataConfig)
    split: str = "validation"
    """Which images of the data are measured on: train or validation."""
    pictures: str = ""
    """A new or empty folder for reconstructions.png, interpolation.png and traversal.png."""
    output: str = ""
    """A JSON file for figures and manifest."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    ignore_manifest: bool = False
    """Take the folder as it is where it is not as it was published, for those who edit models."""


def autoencoder_among(arguments: Sequence[str]) -> bool:
    """Whether one of the arguments names an autoencoder, not a model that generates."""
    if {argument.partition("=")[0] for argument in arguments} & {"--real", "--fake"}:
        return False
    return any(
        not argument.startswith("-") and before != "--classifier" and vae_folder(argument) is not None
        for before, argument in zip(["", *arguments], arguments, strict=False)
    )  # the run folder of a classifier holds its autoencoder


def vae_folder(folder: str | Path) -> Path | None:
    """Where the autoencoder of a run folder, or of a folder `vae`, lies; None for any other folder."""
    root = Path(folder)
    if not folder or not root.is_dir() or any((root / part).exists() for part in (INDEX, "unet", "prior")):
        return None
    if (root / "vae" / "config.json").is_file():
        return root / "vae"
    if (root / RUN_FILE).is_file() or not (root / "config.json").is_file():
        return None
    name = str(read_json(root / "config.json").get("_class_name"))
    return root if name.startswith(("Autoencoder", "VQModel", "Linear")) else None


def run_of(folder: str | Path) -> Path | None:
    """The run folder that holds an autoencoder's settings: the folder itself, or that around its `vae`."""
    for run in (Path(folder), Path(folder).resolve().parent):
        if (run / RUN_FILE).is_file() and (run / "config.yaml").is_file():
            return run if read_run(run)["kind"] == "autoencoder" else None
    return None


def settings_of(folder: str | Path) -> AutoencoderRun | None:
    """The settings of the training, where the folder is that of a run."""
    from ldm.training.tasks.settings import AutoencoderRun

    run = run_of(folder)
    return None if run is None else recorded_settings(AutoencoderRun, run)


def load_autoencoder(folder: str | Path, *, ignore_manifest: bool = False) -> Autoencoder:
    """The autoencoder of a run folder or of a folder `vae`, in evaluation mode; `UserError` if it is none."""
    vae = vae_folder(folder)
    if vae is None:
        root = Path(folder)
        if not root.is_dir():
            hint = "no such folder"
        elif (root / "unet").exists() or (root / INDEX).exists():
            hint = "is a model that generates, not an autoencoder"
        else:
            hint = "there is no autoencoder in it"
        raise UserError(f"{folder}: {hint}; give the output folder of `ldm train autoencoder`")
    from ldm.sampling.model_folder import read_autoencoder
    from ldm.sampling.publication import reading

    with user_errors(), reading(folder):
        return read_autoencoder(vae, ignore_manifest=ignore_manifest)


def run(arguments: list[str]) -> None:
    """Evaluate and print the figures with what they hold for."""
    from ldm.cli.data_report import show_data
    from ldm.cli.show_figures import show
    from ldm.data.open import open_data
    from ldm.evaluation.autoencoder.evaluate import check_files, evaluate_autoencoder, plan_metrics
    from ldm.evaluation.autoencoder.latent_images import write_images
    from ldm.runtime.device import resolve_device

    settings = parse(EvaluateAutoencoderRun, arguments, "evaluate")
    trained = settings_of(settings.model)
    if trained is not None:
        settings = parse(EvaluateAutoencoderRun, arguments, "evaluate", EvaluateAutoencoderRun(dataset=trained.dataset))
    check_file(settings.output, "figures.json")
    check_new_folder(settings.pictures, "--pictures")
    model = load_autoencoder(settings.model, ignore_manifest=settings.ignore_manifest)
    device = resolve_device(settings.device)
    evaluation = settings.evaluation
    plan_metrics(model, evaluation, settings.dataset.image_size)  # refused before the data are read
    check_files(evaluation)
    data, train = open_data(settings.dataset, settings.split), open_data(settings.dataset, "train")
    show_data(data.report)
    loss = None if trained is None else trained.loss
    result = evaluate_autoencoder(model, data, evaluation, train_data=train, loss=loss, device=device)
    show(result)
    if settings.output:
        atomic_write_json(settings.output, result.to_json())
    if settings.pictures:
        for line in write_images(model, data, settings.pictures, device=device):
            print(line)
