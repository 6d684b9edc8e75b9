"""The records of a training: metrics.jsonl, trackers, previews, throughput and the text beside the progress bar."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torch import Tensor, nn

from ldm.runtime.images import enlarged, grid, save_png
from ldm.sampling.finite import NonFiniteSamplesError
from ldm.training.config import TrainingConfig
from ldm.training.evaluations import keep_best
from ldm.training.run_folder import RunFolder, flat
from ldm.training.task import Task
from ldm.training.tracking import Trackers

logger = logging.getLogger("ldm")


class Observer:
    """It never changes what is trained. Of several processes the first has the `run` and writes; the others do not."""

    def __init__(self, run: RunFolder | None, task: Task, config: TrainingConfig, step: int) -> None:
        self.run, self.task, self.config = run, task, config
        self.postfix = ""
        """Text for the progress bar, of the step that was logged last: numbers cost a wait for the device."""
        self._noted = False
        if run is not None:
            logged = run.last_step()
            metadata = flat(task.fingerprint)
            self.trackers = Trackers(config.report_to, config.tracker_project_name, run.path, metadata, step, logged)
            run.at_end.callback(self.trackers.close)
            run.start_metrics(step)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the throughput from here: what came before was not training."""
        self._since, self.steps = time.monotonic(), 0

    def log_step(self, step: int, entry: dict[str, Any]) -> None:
        """Log the terms of the loss and the like, with the throughput since the last entry."""
        images = self.steps * self.config.train_batch_size
        entry = {**entry, "images_per_second": round(images / (time.monotonic() - self._since), 1)}
        if self.run is not None:
            self.run.log({"step": step, **entry})
            self.trackers.log(step, "train", entry)
            names = {"loss": "loss", "gradient_norm": "gradient", "images_per_second": "images/s"}
            self.postfix = ", ".join(f"{short} {entry[name]:.4g}" for name, short in names.items() if name in entry)
        self.restart_clock()

    def validate(self, model: nn.Module, step: int, *, last: bool = False) -> dict[str, Any]:
        """Measure the published weights on held-out data, and save a preview.

        The `notes` among the measures are warnings: given once in a training, after a tenth of it, and at the end.
        """
        run, measures = self.run, {}
        if run is not None:
            with torch.no_grad():
                measures = self.task.validate(model)
                sheet = self._preview(model, step)
            if self.task.best_by:
                keep_best(run.path, self.task.best_by, measures, step, lambda folder: self.task.publish(model, folder))
            self._log_measures(step, "validation", measures)
            notes = measures.get("notes", ())
            if last or (not self._noted and step >= self.config.max_train_steps / 10):
                self._noted = self._noted or bool(notes)
                for note in notes:
                    logger.warning("step %d: %s", step, note)
            if sheet is not None:
                save_png(enlarged(sheet), run.path / "samples" / f"step-{step:06d}.png")
                self.trackers.log_image(step, sheet)
        self.restart_clock()
        return measures

    def _preview(self, model: nn.Module, step: int) -> Tensor | None:
        """Bytes (3, H, W); None, with a warning, where the images are not finite."""
        try:
            images = self.task.preview(model)
            return None if images is None else grid(images)
        except (NonFiniteSamplesError, FloatingPointError) as error:
            logger.warning("step %d: no preview: %s", step, error)
            return None

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Log what was measured of the samples of the published weights."""
        self._log_measures(step, "evaluation", metrics)
        self.restart_clock()

    def _log_measures(self, step: int, what: str, measures: dict[str, Any]) -> None:
        if self.run is None or not measures:
            return
        self.run.log({"step": step, what: measures})
        self.trackers.log(step, what, measures)
        values = ", ".join(f"{name} {value:.4g}" for name, value in measures.items() if isinstance(value, float))
        logger.info("step %d: %s", step, values)
