"""Exponential moving average of weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """A second copy of a model whose weights follow it: ema <- lerp(ema, weight, 1 - decay).

    The decay warms up as min(decay, (1 + n) / (10 + n)) with n the updates so far (counting from 0), so that early
    averages are not ruled by the initial weights. Buffers and frozen parameters are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._followed: nn.Module | None = None  # whose tensors the lists are: walking a network takes as long as lerp
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Follow `model`, of the same structure, after its update number `updates` (0 for the first)."""
        if model is not self._followed:
            self._follow(model)
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(*self._averaged, 1 - decay)
        for kept, current in zip(*self._copied, strict=True):
            kept.copy_(current)

    def _follow(self, model: nn.Module) -> None:
        """List the tensors of both: those that learn are averaged, the others (an EMA codebook, buffers) copied."""
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        moving = [pair for pair in pairs if pair[1].requires_grad]
        still = [pair for pair in pairs if not pair[1].requires_grad]
        still += zip(self.model.buffers(), model.buffers(), strict=True)  # type: ignore[arg-type]
        self._followed = model
        self._averaged = [mine for mine, _ in moving], [theirs for _, theirs in moving]
        self._copied = [mine for mine, _ in still], [theirs for _, theirs in still]
