"""What is told of a training while it runs: metrics.jsonl, trackers, previews and the line beside the bar."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm.images import grid, save_grid
from ldm.training.best import keep_best
from ldm.training.config import TrainingConfig
from ldm.training.evaluations import Evaluations
from ldm.training.run_folder import RunFolder, flat
from ldm.training.tracking import Trackers

logger = logging.getLogger("ldm")


class Observer:
    """Of the main process alone; it never changes what is trained."""

    def __init__(self, run: RunFolder, task: Any, config: TrainingConfig, step: int) -> None:
        self.run, self.task = run, task
        project, told = config.tracker_project_name, run.last_step()
        self.trackers = Trackers(config.report_to, project, run.path, flat(task.facts), step, told)
        run.at_end.callback(self.trackers.close)
        run.start_metrics(step)
        self.evaluations = Evaluations(run, task)
        self._beside = ""

    def step(self, step: int, entry: dict[str, float]) -> None:
        """Log what a step gave: the parts of the loss, and the like."""
        self.run.log({"step": step, **entry})
        self.trackers.log(step, "train", entry)
        names = {"loss": "loss", "gradient_norm": "gradient", "images_per_second": "images/s"}
        self._beside = ", ".join(f"{short} {entry[name]:.4g}" for name, short in names.items() if name in entry)

    def beside(self) -> str:
        """A few words for the progress bar, of the step that was logged last: numbers cost a wait for the device."""
        return self._beside

    def validate(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Measure the published weights on held-out data, and draw a preview."""
        with torch.no_grad():
            measures = self.task.validate(model)
            pictures: Tensor | None = self.task.preview(model)
        if best_by := getattr(self.task, "best_by", None):
            keep_best(self.run.path, best_by, measures, step, lambda folder: self.task.publish(model, folder))
        self._tell(step, "validation", measures)
        if pictures is not None:
            save_grid(pictures, self.run.path / "samples" / f"step-{step:06d}.png")
            self.trackers.picture(step, grid(pictures))
        return measures

    def evaluate(self, model: nn.Module, step: int, stop: Callable[[], object]) -> dict[str, float]:
        """Measure the samples of the published weights; {} where that was done before, or was stopped."""
        figures = self.evaluations.figures(model, step, stop)
        if figures:
            self._tell(step, "evaluation", figures)
        return figures

    def _tell(self, step: int, what: str, measures: dict[str, Any]) -> None:
        self.run.log({"step": step, what: measures})
        self.trackers.log(step, what, measures)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in measures.items() if isinstance(value, float))
        logger.info("step %d: %s", step, shown)
