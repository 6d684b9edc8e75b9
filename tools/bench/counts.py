"""What a call costs the host and the memory, counted and not timed: the same on every run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_READS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class _Dispatched(TorchDispatchMode):
    """Counts the operations that reach the dispatcher below autograd, and those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.synchronisations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self.synchronisations += function.name().split(".")[0] in _READS
        return function(*args, **(kwargs or {}))


def counts(function: Callable[[], Any]) -> dict[str, int]:
    """Dispatched operations, and readings of a value by the host, of one call."""
    with _Dispatched() as counter:
        function()
    return {"operations": counter.operations, "synchronisations": counter.synchronisations}


def flops(function: Callable[[], Any]) -> float:
    """Floating-point operations of the products, convolutions and attentions of one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


class _Live(TorchDispatchMode):
    """The bytes of all tensors made inside and still alive, and the most that they ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._keep(leaf.untyped_storage(), given)
        return result

    def _keep(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(function: Callable[[], Any], device: torch.device) -> float:
    """The most that one call holds beyond what was there before: of tensors on a CPU, of allocations on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    with _Live() as live:
        function()
    return float(live.peak)
