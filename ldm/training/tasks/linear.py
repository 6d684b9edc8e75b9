"""`ldm train autoencoder --bottleneck linear`: no steps, one pass over the data and one eigendecomposition."""

from __future__ import annotations

import logging
from typing import Any

from autoencoders import Autoencoder, fit_linear
from ldm.data.selection import plain_batches
from ldm.runtime.errors import UserError
from ldm.runtime.images import save_grid
from ldm.runtime.progress import progress
from ldm.runtime.text import counted
from ldm.sampling.publication import publication
from ldm.training.published import outdated
from ldm.training.run_folder import RunFolder
from ldm.training.tasks.autoencoder import AutoencoderTask

_BATCH, _STEP = 64, 1

logger = logging.getLogger("ldm")


def fit(task: AutoencoderTask, output_dir: str, settings: str, command: str = "") -> dict[str, Any]:
    """Fit the task's linear autoencoder to its training images, without augmentation; return the measures.

    Leaves a run folder like that of a training, with `vae/` but without checkpoints: a fit that was interrupted starts
    again, a finished one is not repeated. The settings of the loop about steps have no effect. `UserError` where the
    images cannot determine as many components.
    """
    model, data = task.model, task.data
    assert isinstance(model, Autoencoder)
    patches, channels = len(data) * (data.image_size // model.factor) ** 2, model.latent_channels
    if patches <= channels:
        problem = f"the data has only {counted(patches, 'patch')} in {counted(len(data), 'image')}"
        raise UserError(problem, remedy="take fewer", setting="latent_channels", value=channels)
    fingerprint = {name: task.fingerprint[name] for name in ("data", "autoencoder")}
    run = RunFolder.claim(output_dir, task.kind, settings, fingerprint, command)
    try:
        if measures := run.last_measures():
            if not (reason := outdated(run.path, _STEP)):
                return measures
            logger.info("the autoencoder is fitted again: %s", reason)
        run.start_metrics(0)
        model.to(task.device).eval()
        batches = plain_batches(data, range(len(data)), _BATCH, task.device)
        try:
            values = fit_linear(model, progress(batches, "principal components", total=-(-len(data) // _BATCH)))
        except ValueError as error:
            raise UserError(str(error)) from None
        explained = float(values[:channels].sum() / values.sum())
        measures = {**task.validate(model), "explained_variance": explained}
        run.log({"step": _STEP, "validation": measures})
        (run.path / "samples").mkdir(exist_ok=True)
        save_grid(task.preview(model), run.path / "samples" / "step-000001.png")
        run.sync_metrics()
        with publication(run.path, step=_STEP) as folder:
            task.publish(model, folder)
        return measures
    finally:
        run.close()
