"""The parts of a model folder on disk: which there must be, and how they are written."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from autoencoders import Autoencoder
from ldm.conditioning.config import CONDITIONING_FILE
from ldm.conditioning.tokenizer import VOCABULARIES
from ldm.models.classifier import NoisyClassifier
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import atomic_folder, atomic_write_json, read_json
from ldm.runtime.text import counted, printable
from ldm.sampling.config import INDEX, OURS
from ldm.sampling.forward_process import Process, SchedulerConfig
from ldm.sampling.model_manifest import check_manifest
from samplers import DiscreteSchedule, Schedule
from samplers.level import short_repr

_KNOWN_PARTS = ("vae", "unet", "scheduler", "text_encoder", "tokenizer")
_TAKEN = ("cond", "uncond", "weak", "perturbed", "blurred", "skipped")  # branches that are no classifier
WEIGHTS = "_weights"  # whether they are averaged, and how

Classifiers: TypeAlias = str | Path | Sequence[str | Path] | Mapping[str, str | Path]


def write_index(
    folder: Path,
    text_parts: dict[str, list[str]],
    vae: tuple[str, str],
    scheduler_class: str = "DDIMScheduler",
    weights: str = "",
) -> None:
    """model_index.json, written last: with it the folder is a model. A text model is a StableDiffusionPipeline.

    `text_parts` are the entries of text_encoder and tokenizer, {} for a model without text; `weights` says whether they
    are averaged; `vae` is the library and the class of the autoencoder. One of a class that diffusers has not, such as
    that of pixels, which changes nothing, makes it one that no pipeline of diffusers fits.
    """
    stable_diffusion = bool(text_parts) and vae[0] == "diffusers"
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline" if stable_diffusion else "DiffusionPipeline"}
    index |= {"vae": list(vae), "unet": ["diffusers", "UNet2DConditionModel"]}
    index |= {"scheduler": ["diffusers", scheduler_class], **text_parts, OURS: CONDITIONING_FILE}
    if weights:
        index[WEIGHTS] = weights
    if stable_diffusion:
        index |= {part: [None, None] for part in ("safety_checker", "feature_extractor", "image_encoder")}
        index["requires_safety_checker"] = False
    atomic_write_json(folder / INDEX, index)


def write_prior_index(folder: Path, text_parts: dict[str, list[str]]) -> None:
    """model_index.json of an autoencoder, already in its folder, with priors over its codes; diffusers has no such."""
    name = read_json(folder / "vae" / "config.json").get("_class_name")
    vae = ["diffusers" if name == "VQModel" else "autoencoders", name]
    index: dict[str, Any] = {"_class_name": "DiffusionPipeline", "vae": vae}
    index |= {"prior": ["autoencoders.priors", "CodePriors"], **text_parts, OURS: CONDITIONING_FILE}
    atomic_write_json(folder / INDEX, index)


def check_parts(folder: str | Path) -> Path:
    """The folder as a path, or a `UserError` that names what a model folder would have and this one lacks."""
    root = Path(folder)
    if not root.is_dir():
        remedy = "give a model folder or the output folder of `ldm train diffusion`"
        raise UserError(f"{folder}: no such folder", remedy=remedy)
    if not (root / INDEX).is_file():
        hint = "it holds an autoencoder only" if (root / "vae").is_dir() else "it is not a model folder"
        raise UserError(f"{folder}: no {INDEX} ({hint})", remedy="give the output folder of `ldm train diffusion`")
    index = read_json(root / INDEX)
    _check_kind(root, index)
    if OURS in index and not (root / CONDITIONING_FILE).is_file():
        raise UserError(f"{folder}: the model lacks {CONDITIONING_FILE}, which its {INDEX} lists")
    for part, library in index.items():
        if part not in _KNOWN_PARTS or not isinstance(library, list) or library[:1] in ([], [None]):
            continue  # settings, and parts such as a safety checker that sampling does not need
        expected = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(part, "config.json")
        if not (root / part / expected).is_file():
            raise UserError(f"{folder}: the model lacks {part}/{expected}, which its {INDEX} lists")
        if part in ("vae", "unet", "text_encoder") and not list((root / part).glob("*.safetensors")):
            raise UserError(f"{folder}: the model lacks the weights {part}/*.safetensors")
        if part == "tokenizer" and not any((root / part / name).is_file() for name in VOCABULARIES):
            raise UserError(f"{folder}: the model lacks the vocabulary {part}/{VOCABULARIES[0]}")
    return root


def _check_kind(root: Path, index: Mapping[str, Any]) -> None:
    """`UserError` for a folder of another kind of pipeline than latent diffusion with a U-Net, by its own words."""
    parts = sorted(part for part, library in index.items() if isinstance(library, list) and library[:1] != [None])
    holds = f"{root}: a {printable(index.get('_class_name'))} of {', '.join(map(printable, parts)) or 'no parts'}"
    if "vae" not in parts and not (root / "vae").is_dir():
        remedy = "a latent diffusion model has its autoencoder in vae/; one of pixels is trained by"
        raise UserError(f"{holds}, without vae", remedy=f"{remedy} `ldm train diffusion` with `autoencoder` identity")
    if not {"unet", "prior"} & set(parts) and not (root / "unet").is_dir():
        raise UserError(f"{holds}, without unet", remedy="only models whose network is in unet/ are read")


def copy_part(source: Path, target: Path) -> None:
    """Copy one part's folder, atomically."""
    with atomic_folder(target) as folder:
        for path in source.iterdir():
            if path.is_file():
                shutil.copy2(path, folder / path.name)


def read_autoencoder(vae: Path, *, ignore_manifest: bool = False) -> Autoencoder:
    """The autoencoder of a folder, compared with the manifest of the model or run that it is the `vae` of, if any."""
    autoencoder = Autoencoder.from_pretrained(vae)
    if vae.name == "vae":
        check_manifest(vae.parent, ("vae",), autoencoder=autoencoder.fingerprint(), ignore=ignore_manifest)
    return autoencoder


def read_scheduler(folder: Path) -> Process:
    """The process of a model folder's scheduler/scheduler_config.json; `UserError` for one that is not known here."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path, SchedulerConfig, non_finite=True)  # diffusers writes -Infinity into lambda_min_clipped
    try:
        return Process.from_config(config)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: {error}") from None


class _ClassifierMetadata(TypedDict):
    """The contents of a classifier's facts.json."""

    autoencoder: str  # fingerprint
    class_names: list[str]
    schedule: SchedulerConfig


@dataclass(frozen=True)
class LoadedClassifier:
    """A noisy classifier with its class names and the schedule that it was trained on."""

    network: NoisyClassifier
    class_names: tuple[str, ...]
    schedule: Schedule
    folder: Path  # that holds config.json, the weights and facts.json

    __repr__ = short_repr


def read_classifier(
    folder: Path,
    what: str,
    autoencoder: str,
    size: int | None,
    class_names: tuple[str, ...],
    *,
    ignore_manifest: bool = False,
) -> LoadedClassifier:
    """The classifier of a folder; `UserError`, starting with `what`, if it is not for a model's latents and classes.

    `autoencoder` is the fingerprint of the model's, `size` the side of its latents, `class_names` its classes. The
    schedule may be another than the model's.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{what}: no classifier/config.json in it", remedy="give the output of `ldm train classifier`")
    metadata = read_json(folder / "facts.json", _ClassifierMetadata)
    fingerprint, names = metadata["autoencoder"], tuple(metadata["class_names"])
    with user_errors(folder / "facts.json"):
        schedule = DiscreteSchedule.from_config(metadata["schedule"])
    if fingerprint != autoencoder:
        problem = f"{what}: it was trained on the latents of another autoencoder than this model's"
        raise UserError(problem, remedy="train one with `autoencoder` set to this model's folder")
    if class_names and names != class_names:
        raise UserError(f"{what}: its classes, {_some(names)}, are not this model's, {_some(class_names)}")
    try:
        classifier = NoisyClassifier.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"{what}: {error}") from None
    if classifier.config.num_classes != len(names):
        classes = counted(classifier.config.num_classes, "class")
        raise UserError(f"{what}: it has {classes} and {counted(len(names), 'name')}")
    if size not in (None, classifier.config.sample_size):
        side = classifier.config.sample_size
        raise UserError(f"{what}: it takes latents of {side} x {side}, the U-Net's are {size} x {size}")
    check_manifest(folder.parent, (folder.name,), class_names=names, ignore=ignore_manifest)
    return LoadedClassifier(classifier, names, schedule, folder)


def stored_classifiers(root: Path) -> dict[str, tuple[Path, str]]:
    """The classifiers that a model folder holds: by name, their folder and how a refusal names them."""
    folders = [root / "classifier", *sorted((root / "classifiers").glob("[!.]*"))]
    classifiers = {path.name: (path, f"`classifier` {path.parent}") for path in folders if path.is_dir()}
    _check_names(classifiers, str(root))
    return classifiers


def given_classifiers(classifier: Classifiers | None) -> dict[str, tuple[Path, str]]:
    """The classifiers that the user names, likewise."""
    if classifier is None:
        return {}
    if isinstance(classifier, Mapping):
        named = {name: str(folder) for name, folder in classifier.items()}
    else:
        named = {}
        for text in [classifier] if isinstance(classifier, str | Path) else classifier:
            name, sign, folder = str(text).partition("=")
            if not sign or not name.isidentifier() or Path(text).is_dir():
                name, folder = "classifier" if not named else f"classifier{len(named) + 1}", str(text)
            if name in named:
                raise UserError(f"there are two of the name {name!r}", setting="classifier", value=text)
            named[name] = folder
    _check_names(named, "`classifier`")
    return {name: (Path(folder) / "classifier", f"`classifier` {folder}") for name, folder in named.items()}


def _check_names(names: Iterable[str], what: str) -> None:
    for name in names:
        if not name.isidentifier() or name in _TAKEN:
            problem = f"{what}: {name!r} is not a free name for a classifier"
            raise UserError(problem, remedy="take one such as classifier2")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
