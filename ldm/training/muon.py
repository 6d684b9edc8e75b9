"""Muon: momentum orthogonalised a matrix, for kernels and matrices; AdamW for all else (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.training.adamw import AdamW

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: the quintic whose slope at 0 is steepest


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """U V^T, nearly, of matrices U S V^T (B, m, n) with m <= n: singular values are brought to about 0.7 to 1.2.

    Newton-Schulz iteration, which needs products only. Every iterate is P X with P a polynomial in A = X X^T, so all
    of it happens on the small (m, m) side: for n = 9 m a third of the arithmetic of iterating on X itself.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    square, product = x @ x.mT, identity  # (B, m, m): A of this iterate, and P
    for step in range(steps):
        factor = torch.baddbmm(b * square, square, square, alpha=c) + a * identity  # (B, m, m)
        product = factor @ product if step else factor
        if step < steps - 1:
            square = factor @ square @ factor  # they commute
    return product @ x


def suits(parameter: Tensor) -> bool:
    """Whether a parameter is a kernel or matrix with at least 8 rows and columns, not the last layer of a decoder."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= 8


class Muon(AdamW):
    """AdamW whose groups with `muon=True` are stepped by orthogonalised Nesterov momentum instead.

    A kernel (out, in, h, w) counts as the matrix (out, in * h * w); its step has the length lr * sqrt(max(1, rows /
    columns)) a singular value. torch's own `Muon` takes two-dimensional parameters only.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float = 0.95, **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; parameters without a gradient stay."""
        assert closure is None, "the training loop has none"
        everything, mine = self.param_groups, [group for group in self.param_groups if group["muon"]]
        self.param_groups = [group for group in everything if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = everything
        for group in mine:
            self._muon_step([p for p in group["params"] if p.grad is not None], group["lr"])

    def _muon_step(self, parameters: list[Tensor], rate: float) -> None:
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor, bool]]] = {}
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # unused; AdamW expects one of every state
            state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
            update = parameter.grad.lerp(state["momentum"], self.momentum).flatten(1)  # (rows, columns)
            tall = update.shape[0] > update.shape[1]
            update = update.mT if tall else update
            alike.setdefault(tuple(update.shape), []).append((parameter, update, tall))
        for members in alike.values():  # matrices of one shape together
            found = orthogonalized(torch.stack([update for _, update, _ in members]))
            for (parameter, _, tall), step in zip(members, found, strict=True):
                rows, columns = parameter.shape[0], parameter[0].numel()
                step = (step.mT if tall else step).reshape(parameter.shape)
                parameter.add_(step, alpha=-rate * max(1.0, rows / columns) ** 0.5)
