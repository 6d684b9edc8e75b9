"""The conditions of a batch in the form in which the U-Net takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Class ids (B,) int64 and text states (B, L, D); None for what the model does not know."""

    class_labels: Tensor | None
    context: Tensor | None

    def _map(self, change: str, *arguments: object) -> Condition:
        parts = (self.class_labels, self.context)
        return Condition(*(None if part is None else getattr(part, change)(*arguments) for part in parts))

    def to(self, device: torch.device | str) -> Condition:
        """The same on another device."""
        return self._map("to", device)

    def select(self, indices: Tensor) -> Condition:
        """The samples `indices` (N,), or those where a mask (B,) is true."""
        return self._map("__getitem__", indices)

    def repeat(self, times: int) -> Condition:
        """The whole batch `times` times over: (a, b) becomes (a, b, a, b)."""
        return self.cat([self] * times)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """The samples of all `conditions` in one batch; all must condition on the same things."""
        labels = [condition.class_labels for condition in conditions]
        contexts = [condition.context for condition in conditions]
        return Condition(_cat("class labels", labels), _cat("text", contexts))


def _cat(name: str, parts: Sequence[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    if not given:
        return None
    if len(given) != len(parts):
        raise ValueError(f"expected {name} in all conditions or in none, got {len(given)} of {len(parts)}")
    return given[0] if len(given) == 1 else torch.cat(given)
