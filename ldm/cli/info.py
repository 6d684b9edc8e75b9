"""`ldm info FOLDER|DATA`: the contents of a run or model folder, from its settings and the headers of its weights; or
what would be read of a data set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from ldm.cli.parsing import parse, require
from ldm.cli.quickstart_folder import RUNS, describe, is_quickstart
from ldm.cli.verify import verified
from ldm.conditioning.metadata import read_conditioning
from ldm.data.config import DataConfig
from ldm.reports.history import RunRecord
from ldm.runtime.errors import LARGEST, UserError
from ldm.runtime.files import is_there, read_json
from ldm.runtime.text import counted, printable, replace_settings
from ldm.sampling.config import INDEX
from ldm.sampling.defaults import defaults_of_dropout, read_defaults

_PARTS = ("vae", "unet", "text_encoder", "prior", "generator", "classifier", "weak_unet")
_LISTED = {  # the keys of each part's config.json to print
    "vae": ("bottleneck", "coder", "latent_channels", "block_out_channels", "num_vq_embeddings", "sample_size"),
    "unet": ("sample_size", "in_channels", "block_out_channels", "cross_attention_dim", "num_class_embeds"),
    "classifier": ("sample_size", "block_out_channels", "num_classes"),
    "generator": ("noise_channels", "noise_size", "block_out_channels"),
    "scheduler": ("_class_name", "beta_schedule", "num_train_timesteps", "prediction_type", "variance_type"),
}


@dataclass(frozen=True)
class InfoRun:
    """Show the contents of a run, model or autoencoder folder: parts, sizes, classes, training steps. Of data: the
    images, classes and captions that would be read, how they were found, and everything that is passed over."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|DATA")] = ""
    """Run folder, model folder, the folder of an autoencoder or of a quick start; or data, as `--data` takes them."""
    dataset: DataConfig = field(default_factory=DataConfig)
    verify: bool = False
    """Read all files of models, checkpoints and latents in it and compare them with the checksums that were written
    with them."""


def run(arguments: list[str]) -> None:
    """Print one line for each part; no weights are loaded."""
    settings = parse(InfoRun, arguments, "info")
    require(settings.folder, "FOLDER", "a run folder, a model folder or data")
    root = Path(settings.folder)
    if not root.exists() and "/" in settings.folder and not set(settings.folder) & set("*?[{"):
        raise UserError(f"{printable(root)}: no such folder")
    from ldm.sampling.publication import complete

    complete(root)
    lines = [*_training(root), *_model(root), *_quickstart(root)] if root.is_dir() else []
    if lines or settings.verify:
        for line in itertools.chain(lines, verified(root) if settings.verify else ()):
            print(printable(line, None))
    else:
        _data(settings)


def _data(settings: InfoRun) -> None:
    """The report of a data set; images that cannot be read are part of it."""
    from ldm.cli.data_report import show_data
    from ldm.data.open import open_data

    dataset = replace(settings.dataset, data=settings.folder, max_bad_images=LARGEST)
    try:
        show_data(open_data(dataset).report)
    except UserError as error:
        if not Path(settings.folder).is_dir() or "looked for" not in error.remedy:
            raise
        nothing = "holds no run, model or autoencoder (no run.json, model_index.json or config.json), and as data"
        raise UserError(f"{settings.folder}: {nothing}: {error}") from None


def _training(root: Path) -> Iterator[str]:
    """Lines about a run folder: kind, steps, held-out metrics."""
    if not is_there(root / "run.json"):
        return
    yield f"run: ldm train {read_json(root / 'run.json', RunRecord)['kind']}"
    checkpoints = sorted(
        int(path.name.split("-")[1]) for path in root.glob("checkpoint-*") if path.name[11:].isdecimal()
    )
    if checkpoints:
        yield f"checkpoints: step{'s' * (len(checkpoints) > 1)} {', '.join(map(str, checkpoints))}"
    if (root / "averages").is_dir():
        from ldm.training.averages import snapshots

        if stored := snapshots(root):
            lengths = ", ".join(map(str, stored[-1].lengths))
            steps = ", ".join(str(snapshot.step) for snapshot in stored[-10:])
            yield f"averages: lengths {lengths} after steps {'..., ' if len(stored) > 10 else ''}{steps} (`ldm ema`)"
    if is_there(root / "metrics.jsonl"):
        from ldm.reports.history import read_history

        history = read_history(root)
        if history.steps:
            yield f"trained: {counted(history.steps[-1]['step'], 'step')}"
        metrics = {name: value for name, value in history.last.items() if isinstance(value, float)}
        if metrics:
            yield f"held out: {', '.join(f'{name} {value:.4g}' for name, value in metrics.items())}"
        for note in history.notes:
            yield f"warning: {replace_settings(note, lambda setting: '--' + setting.replace('_', '-'))}"
    if is_there(root / "best" / "best.json") or is_there(root / "best.json"):
        yield "best: stored in best/"


def _quickstart(root: Path) -> Iterator[str]:
    """Lines about the folder of a quick start, and about its runs and its model."""
    if not is_quickstart(root):
        return
    yield from describe(root)
    for name in (*RUNS, "model"):
        lines = _model(root / name) if name == "model" else _training(root / name)
        yield from (f"{name}: {line}" for line in lines)


def _model(root: Path) -> Iterator[str]:
    """Lines about a model folder: its parts with their parameters, and its conditions."""
    if is_there(root / "config.json"):  # the folder of one part
        yield _part(root, str(read_json(root / "config.json").get("_class_name", "?")))
    for name in _PARTS:
        if is_there(root / name / "config.json"):
            yield _part(root / name, name)
    for folder in sorted((root / "classifiers").glob("[!.]*")):
        if is_there(folder / "config.json"):
            yield _part(folder, f"classifiers/{folder.name}")
    if is_there(root / "scheduler" / "scheduler_config.json"):
        scheduler = read_json(root / "scheduler" / "scheduler_config.json", non_finite=True)
        yield "scheduler: " + ", ".join(f"{key} {scheduler[key]}" for key in _LISTED["scheduler"] if key in scheduler)
    from ldm.sampling.model_manifest import read_manifest

    if (manifest := read_manifest(root)) is not None and manifest.step is not None:
        yield f"published: after step {manifest.step}"
    if is_there(root / "conditioning.json"):
        conditioning = read_json(root / "conditioning.json")
        names = conditioning.get("class_names") or []
        if names and conditioning.get("class_conditional"):
            yield f"classes: {len(names)}: {', '.join(map(str, names[:10]))}{', ...' if len(names) > 10 else ''}"
        if untrained := {label for label in conditioning.get("untrained_classes") or () if isinstance(label, int)}:
            absent = [str(name) for label, name in enumerate(names) if label in untrained]
            yield f"classes without training images: {len(absent)}: {', '.join(absent[:10])}"
        text = "yes" if conditioning.get("text") else "no"
        yield f"text: {text}; condition dropout: {conditioning.get('dropout')}"
    if (root / INDEX).is_file() and (root / "unet").is_dir():
        metadata = read_conditioning(root)
        dropout = metadata["dropout"] if metadata.get("text") or metadata["class_conditional"] else 0.0
        yield f"default sampling: {read_defaults(root) or defaults_of_dropout(dropout)}"


def _part(folder: Path, name: str) -> str:
    from ldm.runtime.tensors import open_tensors, tensor_shapes

    config = read_json(folder / "config.json")
    key = name if name in _LISTED else "classifier" if name.startswith("classifiers/") else "vae"
    options = [f"{option} {config[option]}" for option in _LISTED[key] if config.get(option) is not None]
    if name not in ("vae", "prior") and "_class_name" in config and config["_class_name"] != name:
        options.insert(0, str(config["_class_name"]))
    count, size = 0, 0
    for file in sorted(folder.glob("*.safetensors")):
        size += file.stat().st_size
        with open_tensors(file) as weights:
            count += sum(map(math.prod, tensor_shapes(weights).values()))
    return f"{name}: {count:,} parameters, {size / 1e6:.1f} MB" + (f"; {', '.join(options)}" if options else "")
