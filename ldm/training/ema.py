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

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Follow `model`, of the same structure, after its update number `updates` (0 for the first)."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        averaged: list[Tensor] = []
        weights: list[Tensor] = []
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            if theirs.requires_grad:
                averaged.append(mine)
                weights.append(theirs)
            else:
                mine.copy_(theirs)  # an EMA codebook moves without a gradient
        torch._foreach_lerp_(averaged, weights, 1 - decay)
        for kept, current in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(current)
