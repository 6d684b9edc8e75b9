"""The model folders that runs leave: the data that one was trained on, and one of other averages of its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from autoencoders.weight_file import differences, refuse
from ldm.data.config import DataConfig
from ldm.runtime.errors import user_errors
from ldm.runtime.files import atomic_folder, atomic_write_json, read_json
from ldm.sampling.code_prior import holds_prior
from ldm.sampling.model_folder import INDEX, WEIGHTS, check_parts, copy_part
from ldm.sampling.model_manifest import manifest_of, write_manifest
from ldm.sampling.pipeline import Pipeline
from ldm.training.averages import FOLDER, Reconstruction
from ldm.training.run_folder import RUN_FILE, recorded_settings
from ldm.training.tasks.diffusion import DiffusionModel
from ldm.training.tasks.settings import DiffusionRun, PriorRun

Settings = TypeVar("Settings")


def dataset_of(model: str | Path) -> DataConfig | None:
    """The data set of the run that a model folder is the output of; None of a model folder alone."""
    if not (check_parts(model) / RUN_FILE).is_file():
        return None
    kind: type[DiffusionRun | PriorRun] = PriorRun if holds_prior(model) else DiffusionRun
    return recorded_settings(kind, model).dataset


def keep_scales(settings: Settings) -> Settings:
    """The settings of a training with the guidance scales that its run folder recorded, where they are unset.

    A run that began when the scales had other defaults goes on with those; its evaluations compare.
    """
    if not isinstance(settings, DiffusionRun | PriorRun):
        return settings
    run = Path(settings.training.output_dir)
    before: Any = recorded_settings(type(settings), run) if (run / "config.yaml").is_file() else settings
    changes: dict[str, Any] = {}
    if settings.evaluation.eval_guidance_scale is None:
        scale = before.evaluation.eval_guidance_scale
        changes["evaluation"] = replace(settings.evaluation, eval_guidance_scale=scale)
    if isinstance(settings, DiffusionRun) and settings.preview_guidance_scale is None:
        changes["preview_guidance_scale"] = before.preview_guidance_scale
    return cast(Settings, replace(settings, **changes))  # type: ignore[type-var]


def write_reconstruction(run: Path, average: Reconstruction, target: Path, *, ignore_manifest: bool = False) -> None:
    """The run's model with these weights in place of the published ones, whole or not at all; `reconstruction.json`
    describes them. `UserError` where the weights are of another model."""
    pipeline = Pipeline.load(run, device="cpu", ignore_manifest=ignore_manifest)
    model = DiffusionModel(pipeline.networks.unet, pipeline.networks.conditioner)
    text = pipeline.networks.conditioner.text
    frozen = "conditioner." if text is not None and text.kind == "frozen" else "-"
    trained = {name: weight for name, weight in model.named_parameters() if not name.startswith(frozen)}
    stored = {name: (tuple(weight.shape), "F32") for name, weight in average.weights.items()}
    with user_errors():
        refuse(run / FOLDER, list(differences(stored, trained, "the run's model folder")))
    model.load_state_dict(average.weights, strict=False)
    with atomic_folder(target) as folder:
        for part in ("vae", "scheduler", "tokenizer"):
            if (run / part).is_dir():
                copy_part(run / part, folder / part)
        model.unet.save_pretrained(folder / "unet")
        model.conditioner.save_pretrained(folder)
        atomic_write_json(folder / "reconstruction.json", average.metadata())
        weights = f"EMA of relative length {average.length:g} after step {average.step}, from snapshots"
        atomic_write_json(folder / INDEX, read_json(run / INDEX) | {WEIGHTS: weights})
        fingerprint = pipeline.networks.autoencoder.fingerprint()
        write_manifest(folder, manifest_of(folder, step=average.step, autoencoder=fingerprint))
