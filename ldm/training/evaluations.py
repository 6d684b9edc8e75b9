"""The evaluations of a run: each measured once and stored in evaluations/; the best model of a run in best/."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.evaluation.measure import EvaluationStopped
from ldm.evaluation.records import EvaluationResult
from ldm.models.weights import weights_fingerprint
from ldm.reports.history import BestRecord
from ldm.runtime.distributed import Processes
from ldm.runtime.errors import StoppedByOtherProcess, UserError
from ldm.runtime.files import atomic_write_json, read_json
from ldm.sampling.finite import NonFiniteSamplesError
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.publication import publication
from ldm.training.published import damage_of
from ldm.training.run_folder import RunFolder
from ldm.training.task import Task

logger = logging.getLogger("ldm")
FOLDER = "evaluations"
BEST, BEST_FILE = "best", "best.json"


class Evaluations:
    """Measures the published weights of a task that has an `evaluator`, every so many steps and at the end.

    A result is written to a file of its own before it is logged. A training that was killed and comes to the same step
    with the same weights reads it from there. All processes must call `evaluate` and share the sampling; the first,
    which has the `run`, reads and writes.
    """

    def __init__(self, run: RunFolder | None, task: Task, processes: Processes) -> None:
        self.run, self.task, self.evaluator, self.processes = run, task, task.evaluator, processes
        if run is not None:
            forget_damaged_best(run.path)

    def due(self, step: int, last: bool) -> bool:
        """Whether samples are measured after this step, the same in all processes."""
        return self.evaluator is not None and step > 0 and (last or step % self.evaluator.config.eval_every == 0)

    def evaluate(self, model: nn.Module, step: int, stop: Callable[[], object]) -> dict[str, float]:
        """{name: value} of the model of a step; {} where they are logged already, or the evaluation was stopped."""
        assert self.evaluator is not None
        logged, result, key = self.processes.run_on_main_and_broadcast(lambda: self._stored(model, step))
        if logged:
            return {}
        if result is None:
            try:
                result = self._measure(model, stop)
            except EvaluationStopped:
                logger.info("step %d: the evaluation was stopped; it is made when the training goes on", step)
                return {}
            except NonFiniteSamplesError as error:
                logger.warning("step %d: no evaluation: %s", step, error)
                return {}
            except StoppedByOtherProcess as other:
                if other.code != 2:
                    raise
                return {}  # its samples are not finite
        if self.run is not None:
            atomic_write_json(self._file(self.run, step), {**key, "result": result.to_json()})
            best = result[self.evaluator.config.best_by]
            keep_best(
                self.run.path,
                best.name,
                {best.name: best.value},
                step,
                lambda folder: self.task.publish(model, folder),
                higher_is_better=best.higher_is_better,
                fingerprint=self.evaluator.comparable_settings,
                autoencoder=self.task.autoencoder_fingerprint,
            )
        return {metric.name: metric.value for metric in result.figures}

    def _measure(self, model: nn.Module, stop: Callable[[], object]) -> EvaluationResult:
        evaluator, processes = self.evaluator, self.processes
        assert evaluator is not None
        with torch.no_grad(), preserve_requires_grad(model):
            pipeline = self.task.pipeline(model)
            if isinstance(pipeline, Pipeline):
                return evaluator(pipeline, stop, processes)
            stop = stop if processes.count == 1 else bool  # a prior's codes are drawn by one process
            return processes.run_on_main_and_broadcast(lambda: evaluator(pipeline, stop))

    def _stored(self, model: nn.Module, step: int) -> tuple[bool, EvaluationResult | None, dict[str, Any]]:
        """Whether the result is logged already; else what was measured of these weights before, and their key."""
        assert self.run is not None and self.evaluator is not None
        if self.run.has_evaluation(step):
            return True, None, {}
        key = {"step": step, "weights": weights_fingerprint(model), "settings": self.evaluator.comparable_settings}
        return False, _read_result(self._file(self.run, step), key), key

    def _file(self, run: RunFolder, step: int) -> Path:
        return run.path / FOLDER / f"step-{step:06d}.json"


def _read_result(path: Path, key: dict[str, Any]) -> EvaluationResult | None:
    """The result in the file, if it is of these weights under these settings."""
    try:
        stored = read_json(path)
        if {name: stored.get(name) for name in key} == key:
            return EvaluationResult.from_json(stored.get("result"))
    except ValueError:  # UserError among them: it is measured again
        pass
    return None


@contextmanager
def preserve_requires_grad(model: nn.Module) -> Iterator[None]:
    """A pipeline freezes its networks; where there is no average they are those in training."""
    trained = [parameter.requires_grad for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in zip(model.parameters(), trained, strict=True):
            parameter.requires_grad_(requires_grad)


def keep_best(
    run: Path,
    best_by: str,
    measures: Mapping[str, Any],
    step: int,
    publish: Callable[[Path], None],
    *,
    higher_is_better: bool = False,
    fingerprint: Mapping[str, Any] | None = None,
    autoencoder: str = "",
) -> bool:
    """Publish into `run/best` if the measure whose name begins with `best_by` is better than all before; whether so.

    best.json there holds the name of the measure, its value, the step, and the `fingerprint` (plain JSON) without which
    values do not compare: where it changed, the present model is the best. A run that was resumed from before its best
    step comes to the same model again and leaves the folder alone. No measure of that name, or NaN: nothing happens.
    """
    name = next((name for name in measures if name.startswith(best_by)), None)
    if name is None or measures[name] is None or not math.isfinite(measures[name]):
        return False
    file, value = run / BEST / BEST_FILE, measures[name]
    before = _best_so_far(file)
    if before is not None and before["measure"] == name and before.get("facts") == fingerprint:
        best_value = before["value"]
        assert best_value is not None  # `_best_so_far`
        better = value > best_value if higher_is_better else value < best_value
        if not better:
            return False
    with publication(run / BEST, step=step, autoencoder=autoencoder) as target:
        publish(target)
        record = {"measure": name, "value": value, "step": step}
        record |= {"higher_is_better": True} if higher_is_better else {}
        atomic_write_json(target / BEST_FILE, record if fingerprint is None else {**record, "facts": fingerprint})
    return True


def _best_so_far(file: Path) -> BestRecord | None:
    """best.json; None where there is none that can be read."""
    try:
        best = read_json(file, BestRecord) if file.is_file() else None
    except UserError as error:
        logger.warning("%s: the best model from here on replaces it", error)
        return None
    return best if best is not None and best["value"] is not None else None


def forget_damaged_best(run: Path) -> None:
    """After resuming: where the model in best/ is damaged, the next one that is measured takes its position."""
    file = run / BEST / BEST_FILE
    if file.is_file() and (problem := damage_of(run / BEST)):
        logger.warning("%s is damaged (%s): the best model from here on replaces it", run / BEST, problem)
        file.unlink()
