"""A model folder from a run's snapshots of averages."""

from __future__ import annotations

from pathlib import Path

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_folder, atomic_write_json, read_json
from ldm.sampling.model_folder import INDEX, WEIGHTS, copy_part
from ldm.sampling.pipeline import Pipeline
from ldm.training.averages import Reconstruction, facts_of
from ldm.training.tasks.diffusion import DiffusionModel


def write_model(run: Path, found: Reconstruction, length: float, target: Path) -> None:
    """The run's model with these weights in place of the published ones, whole or not at all; `reconstruction.json`
    tells what they are. `UserError` where the weights are of another model."""
    pipeline = Pipeline.load(run)
    model = DiffusionModel(pipeline.networks.unet, pipeline.networks.conditioner)
    unknown = model.load_state_dict(found.weights, strict=False).unexpected_keys if _fit(model, found) else ["shapes"]
    if unknown:
        raise UserError(f"{run}: its snapshots are of another model than its model folder ({unknown[0]})")
    with atomic_folder(target) as folder:
        for part in ("vae", "scheduler", "tokenizer"):
            if (run / part).is_dir():
                copy_part(run / part, folder / part)
        model.unet.save_pretrained(folder / "unet")
        model.conditioner.save_pretrained(folder)
        atomic_write_json(folder / "reconstruction.json", facts_of(found, length))
        weights = f"EMA of relative length {length:g} after step {found.step}, from snapshots"
        atomic_write_json(folder / INDEX, read_json(run / INDEX) | {WEIGHTS: weights})


def _fit(model: DiffusionModel, found: Reconstruction) -> bool:
    own = model.state_dict()
    return all(name not in own or own[name].shape == value.shape for name, value in found.weights.items())
