"""The conditions of a batch in the form in which the U-Net takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.level import short_repr


@dataclass(frozen=True)
class Condition:
    """Class indices (B,) int64 and text states (B, L, D); None for what is no condition of the model."""

    class_labels: Tensor | None
    context: Tensor | None

    __repr__ = short_repr

    def _map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        tensors = (self.class_labels, self.context)
        return Condition(*(None if tensor is None else function(tensor) for tensor in tensors))

    def to(self, device: torch.device | str) -> Condition:
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def select(self, indices: Tensor) -> Condition:
        """The samples `indices` (N,), or those where a mask (B,) is true."""
        return self._map(lambda tensor: tensor[indices])

    def repeat(self, times: int) -> Condition:
        """The whole batch `times` times over: (a, b) becomes (a, b, a, b)."""
        return self.cat([self] * times)

    def same_as(self, other: Condition) -> bool:
        """Whether the conditions of all samples are equal, bit for bit."""
        pairs = (self.class_labels, other.class_labels), (self.context, other.context)
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """The samples of all `conditions` in one batch; all must condition on the same things."""
        labels = [condition.class_labels for condition in conditions]
        contexts = [condition.context for condition in conditions]
        return Condition(_cat("class labels", labels), _cat("text", contexts))


def _cat(name: str, optional: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [tensor for tensor in optional if tensor is not None]
    if not tensors:
        return None
    if len(tensors) != len(optional):
        raise ValueError(f"expected {name} in all conditions or in none, got {len(tensors)} of {len(optional)}")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
