"""Samples that are not finite stop the sampling, and the message says at which step and in which branch that began."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ldm.runtime.errors import UserError
from samplers import Evaluate, Level, Prediction, Step


class NonFiniteSamplesError(UserError):
    """A sample has a number that is infinite or not a number: it is no image, and black would hide that."""


class _NonFiniteBranchError(ArithmeticError):
    """The name of the branch whose prediction is not finite."""


class CheckedEvaluate:
    """An `Evaluate` that stops at the first branch whose prediction is not finite. Each call waits for the device."""

    def __init__(self, evaluate: Evaluate, branches: Collection[str]) -> None:
        self.evaluate, self.branches = evaluate, branches
        self.used: dict[str, None] = {}  # branches of the last call, in order

    def __call__(self, x: Tensor, level: Level, names: Sequence[str]) -> Mapping[str, Prediction]:
        predictions = self.evaluate(x, level, names)
        self.used = dict.fromkeys(predictions)
        for name, p in predictions.items():
            if not are_finite(p.x0, p.score_shift, p.variance_fraction):
                raise _NonFiniteBranchError(name)
        return predictions


def are_finite(*values: Tensor | None) -> bool:
    """Whether all numbers of these tensors are finite."""
    return all(bool(value.isfinite().all()) for value in values if value is not None)


def first_non_finite(steps: Iterable[Step], evaluate: CheckedEvaluate, levels: Sequence[Level]) -> str:
    """Where the steps of a solver, run again under `evaluate`, leave the finite numbers; "" if they do not."""
    index = 0
    try:
        for step in steps:
            if not are_finite(step.denoised, step.x):
                made_of = f"made of the branches {', '.join(evaluate.used)}, each of which is finite"
                return f"{_step(index, levels)}, the guided prediction, {made_of}"
            index = step.index + 1
    except _NonFiniteBranchError as error:
        return f"{_step(index, levels)}, the branch {str(error)!r}"
    except FloatingPointError as error:
        return f"{_step(index, levels)}, the solver ({error})"
    return ""


def _step(index: int, levels: Sequence[Level]) -> str:
    return f"step {index + 1} of {len(levels) - 1} (t = {levels[index].t:g})"


def or_nan(values: Tensor, *finite: Tensor) -> Tensor:
    """`values`, or NaN in place of all of them where one of the `finite` tensors is not; no wait for the device."""
    whole = torch.stack([tensor.isfinite().all() for tensor in finite]).all()
    return torch.where(whole, values, values.new_tensor(float("nan")))
