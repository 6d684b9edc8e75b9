"""Losses and gradients that are not finite reach no weight: the run stops, or leaves the step out and counts it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.pixel_data import PixelData
from ldm.runtime.distributed import Processes
from ldm.runtime.text import counted, printable
from ldm.training.randomness import BatchPlan, BatchShard
from ldm.training.task import Task

logger = logging.getLogger("ldm")
_NAMED = 8  # examples in a message; the log has all


class FiniteGuard:
    """Checks every step before its update; all processes come to the same result.

    `limit` steps in a row may be left out; 0: the first one stops the run. What a forward call changes without a
    gradient (a moving codebook, running statistics) is restored as well, from a copy that is made where steps may be
    left out.
    """

    def __init__(self, limit: int, processes: Processes, models: Sequence[nn.Module]) -> None:
        self.limit, self.processes = limit, processes
        self.left_out = self.in_a_row = 0
        self._non_finite: list[str] | None = None  # terms of the last step
        self._message = ""
        self._buffers = [
            value
            for model in models
            for value in chain(model.buffers(), (p for p in model.parameters() if not p.requires_grad))
        ]
        self._copies: list[Tensor] = []

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"left_out": self.left_out, "in_a_row": self.in_a_row}

    def load(self, state: dict[str, Any]) -> None:
        """As `state` gave it; {} of a checkpoint from before there was one."""
        self.left_out, self.in_a_row = int(state.get("left_out", 0)), int(state.get("in_a_row", 0))

    def begin(self) -> None:
        """Before the first forward call of a step."""
        self._non_finite = None
        if self.limit:
            self._copies = [value.detach().clone() for value in self._buffers]

    def rejects(self, terms: dict[str, Tensor], norms: dict[str, Tensor]) -> bool:
        """Whether a loss of `terms` ("loss", "..._loss") or a norm is not finite: then the update must be left out."""
        losses = [value.detach() for name, value in terms.items() if name == "loss" or name.endswith("_loss")]
        checked = torch.stack([value.float() for value in (*losses, *norms.values())])
        if not self.processes.any(not bool(checked.isfinite().all()), checked.device):  # the step's one wait
            self.in_a_row = 0
            return False
        joint = torch.stack([value.detach().float() for value in (*terms.values(), *norms.values())])
        values = zip((*terms, *norms), self.processes.sum(joint).tolist(), strict=True)
        self._non_finite = [name for name, value in values if not math.isfinite(value)]
        self.left_out, self.in_a_row = self.left_out + 1, self.in_a_row + 1
        with torch.no_grad():
            for value, copy in zip(self._buffers, self._copies, strict=True) if self._copies else ():
                value.copy_(copy)
        return True

    def entry(self, task: Task, seed: int, step: int, batch_size: int) -> dict[str, Any]:
        """Entries of the log for the step just taken: {} if no step has been left out so far."""
        if self._non_finite is None:
            return {"steps_left_out": self.left_out} if self.left_out else {}
        (keys,) = BatchPlan(task.length, seed, BatchShard(batch_size), step, step + 1)
        examples = [index for index, _ in keys]
        data = task.data
        files = [name for i in examples if isinstance(data, PixelData) and (name := printable(data.file_name(i)))]
        named = [f"{index} ({file})" for index, file in zip(examples, files, strict=True)] if files else examples
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        self._message = (
            f"step {step + 1}: not finite: {', '.join(self._non_finite)}; training examples of the batch: "
            f"{', '.join(str(name) for name in named[:_NAMED])}{more}"
        )
        entry = {"not_finite": self._non_finite, "examples": examples, **({"files": files} if files else {})}
        return {**entry, "steps_left_out": self.left_out}

    def raise_or_warn(self) -> None:
        """After the step was logged: `FloatingPointError` if one too many in a row was not finite."""
        if self._non_finite is None:
            return
        if self.in_a_row <= self.limit:
            logger.warning("%s; left out (%d in a row, %d in all)", self._message, self.in_a_row, self.left_out)
            return
        remedy = "look at them, or lower `learning_rate`; `skip_non_finite` N leaves out such steps"
        row = f"{counted(self.in_a_row, 'step')} in a row, the limit is `skip_non_finite` {self.limit}"
        raise FloatingPointError(f"{self._message}; no weight was changed; {row if self.limit else remedy}")
