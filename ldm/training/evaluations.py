"""The evaluations of a run: each measured once, kept in evaluations/, and the best model of them in best/."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError
from ldm.evaluation.during import EvaluationStopped, Watch
from ldm.evaluation.records import EvaluationResult
from ldm.files import atomic_write_json, read_json
from ldm.training.best import keep_best
from ldm.training.run_folder import RunFolder
from ldm.weights import weights_fingerprint

logger = logging.getLogger("ldm")
FOLDER = "evaluations"


def is_due(task: Any, step: int, last: int) -> bool:
    """Whether samples are measured after this step, the same in all processes: every so many steps and at the end."""
    watch: Watch | None = getattr(task, "watch", None)
    return watch is not None and step > 0 and (step == last or step % watch.config.eval_every == 0)


class Evaluations:
    """Measures the published weights of a task that has a `watch`, at the steps that the loop names.

    What was measured is a file of its own, written before anything else is told. A training that was killed and comes
    to the same step with the same weights takes the figures from there. All is done on the main process.
    """

    def __init__(self, run: RunFolder, task: Any) -> None:
        self.run, self.task = run, task

    def figures(self, model: nn.Module, step: int, stop: Callable[[], object]) -> dict[str, float]:
        """{name: value} of the model of a step; {} where they are logged already, or the evaluation was stopped."""
        if self.run.has_evaluation(step):
            return {}
        path, watch = self.run.path / FOLDER / f"step-{step:06d}.json", self.task.watch
        facts = {"step": step, "weights": weights_fingerprint(model), "settings": watch.facts}
        result = _known(path, facts)
        if result is None:
            try:
                with torch.no_grad(), requires_grad_kept(model):
                    result = watch(self.task.pipeline(model), stop)
            except EvaluationStopped:
                logger.info("step %d: the evaluation was stopped; it is made when the training goes on", step)
                return {}
            atomic_write_json(path, {**facts, "result": result.to_json()})
        self._keep_best(result, model, step)
        return {figure.name: figure.value for figure in result.figures}

    def _keep_best(self, result: EvaluationResult, model: nn.Module, step: int) -> None:
        watch: Watch = self.task.watch
        figure = result[watch.config.best_by]
        keep_best(
            self.run.path,
            figure.name,
            {figure.name: figure.value},
            step,
            lambda folder: self.task.publish(model, folder),
            higher_is_better=figure.higher_is_better,
            facts=watch.facts,
        )


def _known(path: Any, facts: dict[str, Any]) -> EvaluationResult | None:
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
