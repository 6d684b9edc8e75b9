"""The data that a run was trained on."""

from __future__ import annotations

from pathlib import Path

from ldm.data import DataConfig
from ldm.runtime.settings import read_settings
from ldm.sampling.code_prior import holds_prior
from ldm.sampling.model_folder import check_parts
from ldm.training.run_folder import RUN_FILE


def dataset_of(model: str | Path) -> DataConfig | None:
    """The data set of the run that a model folder is the output of; None of a model folder alone."""
    if not (check_parts(model) / RUN_FILE).is_file():
        return None
    from ldm.training.tasks.diffusion import DiffusionRun
    from ldm.training.tasks.prior import PriorRun

    kind: type[DiffusionRun | PriorRun] = PriorRun if holds_prior(model) else DiffusionRun
    return read_settings(kind, Path(model) / "config.yaml").dataset
