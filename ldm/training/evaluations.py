"""The evaluations of a run: each measured once, kept in evaluations/, and the best model of them in best/."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.evaluation.periodic import EvaluationStopped, PeriodicEvaluator
from ldm.evaluation.records import EvaluationResult
from ldm.models.weights import weights_fingerprint
from ldm.runtime.distributed import Processes
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, read_json
from ldm.sampling.pipeline import Pipeline
from ldm.training.best import keep_best
from ldm.training.run_folder import RunFolder

logger = logging.getLogger("ldm")
FOLDER = "evaluations"


def is_due(task: Any, step: int, last: int) -> bool:
    """Whether samples are measured after this step, the same in all processes: every so many steps and at the end."""
    watch: PeriodicEvaluator | None = getattr(task, "watch", None)
    return watch is not None and step > 0 and (step == last or step % watch.config.eval_every == 0)


class Evaluations:
    """Measures the published weights of a task that has a `watch`, at the steps that the loop names.

    What was measured is a file of its own, written before anything else is told. A training that was killed and comes
    to the same step with the same weights takes the figures from there. Every process must ask, and all share the
    sampling; the first, which has the `run`, reads and writes.
    """

    def __init__(self, run: RunFolder | None, task: Any, processes: Processes) -> None:
        self.run, self.task, self.processes = run, task, processes

    def figures(self, model: nn.Module, step: int, stop: Callable[[], object]) -> dict[str, float]:
        """{name: value} of the model of a step; {} where they are logged already, or the evaluation was stopped."""
        logged, result, facts = self.processes.run_on_main_and_broadcast(lambda: self._before(model, step))
        if logged:
            return {}
        if result is None:
            try:
                result = self._measured(model, stop)
            except EvaluationStopped:
                logger.info("step %d: the evaluation was stopped; it is made when the training goes on", step)
                return {}
        if self.run is not None:
            atomic_write_json(self._file(self.run, step), {**facts, "result": result.to_json()})
            self._keep_best(self.run, result, model, step)
        return {figure.name: figure.value for figure in result.figures}

    def _measured(self, model: nn.Module, stop: Callable[[], object]) -> EvaluationResult:
        watch: PeriodicEvaluator = self.task.watch
        with torch.no_grad(), requires_grad_kept(model):
            pipeline = self.task.pipeline(model)
            if isinstance(pipeline, Pipeline):
                return watch(pipeline, stop, self.processes)
            heard = stop if self.processes.count == 1 else bool
            return self.processes.run_on_main_and_broadcast(
                lambda: watch(pipeline, heard)
            )  # a prior's codes are drawn by one

    def _before(self, model: nn.Module, step: int) -> tuple[bool, EvaluationResult | None, dict[str, Any]]:
        """Whether the figures are logged already; else what was measured of these weights before, and their facts."""
        assert self.run is not None
        if self.run.has_evaluation(step):
            return True, None, {}
        facts = {"step": step, "weights": weights_fingerprint(model), "settings": self.task.watch.comparable_settings}
        return False, _known(self._file(self.run, step), facts), facts

    def _file(self, run: RunFolder, step: int) -> Path:
        return run.path / FOLDER / f"step-{step:06d}.json"

    def _keep_best(self, run: RunFolder, result: EvaluationResult, model: nn.Module, step: int) -> None:
        watch: PeriodicEvaluator = self.task.watch
        figure = result[watch.config.best_by]
        keep_best(
            run.path,
            figure.name,
            {figure.name: figure.value},
            step,
            lambda folder: self.task.publish(model, folder),
            higher_is_better=figure.higher_is_better,
            facts=watch.comparable_settings,
        )


def _known(path: Path, facts: dict[str, Any]) -> EvaluationResult | None:
    """What the file says, if it is of these weights under these settings."""
    try:
        stored = read_json(path)
        if {name: stored.get(name) for name in facts} == facts:
            return EvaluationResult.from_json(stored["result"])
    except (UserError, AttributeError, KeyError, TypeError):
        pass
    return None


@contextmanager
def requires_grad_kept(model: nn.Module) -> Iterator[None]:
    """A pipeline freezes its networks; where there is no average they are those in training."""
    trained = [parameter.requires_grad for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in zip(model.parameters(), trained, strict=True):
            parameter.requires_grad_(requires_grad)
