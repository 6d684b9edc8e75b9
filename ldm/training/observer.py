"""What is told of a training while it runs: metrics.jsonl, trackers, previews and the line beside the bar."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ldm.runtime.images import enlarged, grid, save_png
from ldm.training.best import keep_best
from ldm.training.config import TrainingConfig
from ldm.training.run_folder import RunFolder, flat
from ldm.training.tracking import Trackers

logger = logging.getLogger("ldm")


class Observer:
    """It never changes what is trained. Of several processes the first has the `run` and tells; the others are mute."""

    def __init__(self, run: RunFolder | None, task: Any, config: TrainingConfig, step: int) -> None:
        self.run, self.task = run, task
        self._beside = ""
        if run is None:
            return
        project, told = config.tracker_project_name, run.last_step()
        self.trackers = Trackers(config.report_to, project, run.path, flat(task.facts), step, told)
        run.at_end.callback(self.trackers.close)
        run.start_metrics(step)

    def step(self, step: int, entry: dict[str, float]) -> None:
        """Log what a step gave: the parts of the loss, and the like."""
        if self.run is None:
            return
        self.run.log({"step": step, **entry})
        self.trackers.log(step, "train", entry)
        names = {"loss": "loss", "gradient_norm": "gradient", "images_per_second": "images/s"}
        self._beside = ", ".join(f"{short} {entry[name]:.4g}" for name, short in names.items() if name in entry)

    def beside(self) -> str:
        """A few words for the progress bar, of the step that was logged last: numbers cost a wait for the device."""
        return self._beside

    def validate(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Measure the published weights on held-out data, and draw a preview."""
        run = self.run
        if run is None:
            return {}
        with torch.no_grad():
            measures = self.task.validate(model)
            pictures: Tensor | None = self.task.preview(model)
        if best_by := getattr(self.task, "best_by", None):
            keep_best(run.path, best_by, measures, step, lambda folder: self.task.publish(model, folder))
        self._tell(step, "validation", measures)
        if pictures is not None:
            sheet = grid(pictures)  # (3, H, W), bytes
            save_png(enlarged(sheet), run.path / "samples" / f"step-{step:06d}.png")
            self.trackers.picture(step, sheet)
        return measures

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Log what was measured of the samples of the published weights."""
        self._tell(step, "evaluation", figures)

    def _tell(self, step: int, what: str, measures: dict[str, Any]) -> None:
        if self.run is None or not measures:
            return
        self.run.log({"step": step, what: measures})
        self.trackers.log(step, what, measures)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in measures.items() if isinstance(value, float))
        logger.info("step %d: %s", step, shown)
