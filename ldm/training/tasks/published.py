"""The model folders that runs leave: the data that one was trained on, and one of other averages of its weights."""

from __future__ import annotations

from pathlib import Path

from ldm.data.config import DataConfig
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_folder, atomic_write_json, read_json
from ldm.sampling.code_prior import holds_prior
from ldm.sampling.model_folder import INDEX, WEIGHTS, check_parts, copy_part
from ldm.sampling.pipeline import Pipeline
from ldm.training.averages import Reconstruction
from ldm.training.run_folder import RUN_FILE, recorded_settings
from ldm.training.tasks.diffusion import DiffusionModel
from ldm.training.tasks.settings import DiffusionRun, PriorRun


def dataset_of(model: str | Path) -> DataConfig | None:
    """The data set of the run that a model folder is the output of; None of a model folder alone."""
    if not (check_parts(model) / RUN_FILE).is_file():
        return None
    kind: type[DiffusionRun | PriorRun] = PriorRun if holds_prior(model) else DiffusionRun
    return recorded_settings(kind, model).dataset


def write_reconstruction(run: Path, average: Reconstruction, target: Path) -> None:
    """The run's model with these weights in place of the published ones, whole or not at all; `reconstruction.json`
    describes them. `UserError` where the weights are of another model."""
    pipeline = Pipeline.load(run)
    model = DiffusionModel(pipeline.networks.unet, pipeline.networks.conditioner)
    own = model.state_dict()
    unknown = [name for name, value in average.weights.items() if name in own and own[name].shape != value.shape]
    unknown = unknown or model.load_state_dict(average.weights, strict=False).unexpected_keys
    if unknown:
        raise UserError(f"{run}: its snapshots are of another model than its model folder ({unknown[0]})")
    with atomic_folder(target) as folder:
        for part in ("vae", "scheduler", "tokenizer"):
            if (run / part).is_dir():
                copy_part(run / part, folder / part)
        model.unet.save_pretrained(folder / "unet")
        model.conditioner.save_pretrained(folder)
        atomic_write_json(folder / "reconstruction.json", average.metadata())
        weights = f"EMA of relative length {average.length:g} after step {average.step}, from snapshots"
        atomic_write_json(folder / INDEX, read_json(run / INDEX) | {WEIGHTS: weights})
