"""Guidance by any differentiable function: p(y | x) of a classifier becomes exp(-energy(x)) (Bansal et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from samplers.guidance.base import inner
from samplers.level import Evaluate, Level, NamedBranches, Prediction

Energy: TypeAlias = Callable[[Tensor], Tensor]  # (B, ...) -> (B,)


class with_energy:  # noqa: N801 - used as a function
    """`evaluate` with one more branch, `name`, whose shift goes down the gradient in x_t of `energy`.

    of="x0": of the denoised estimate of "cond", by default through the denoiser's Jacobian (which `evaluate` must let
    autograd see); without it, dx0 / dx_t is taken as alpha / sigma^2, that of a posterior of unit variance, so that the
    estimate moves by minus the gradient and nothing is differentiated but the energy. of="x": of x_t itself. Several
    energies are one around the other, and share one evaluation.

    With `normalize` the gradient of each sample gives the direction alone, so that one scale serves energies of any
    unit. At scale 1 the denoised estimate moves by sigma / sqrt(alpha^2 + sigma^2) in root mean square, its standard
    deviation under a prior of unit variance; and, for an energy of x0 that is never below its `minimum`, no farther
    than to where the energy would reach that by its slope (Polyak 1969's step). The direction alone, with another
    length, is used by Chung et al. 2023 (arXiv:2209.14687, DPS) and Yu et al. 2023 (arXiv:2303.09833, FreeDoM).
    Without `normalize` the shift is minus the gradient itself (Bansal et al. 2023).
    """

    def __init__(
        self,
        evaluate: Evaluate,
        energy: Energy,
        *,
        name: str = "energy",
        of: Literal["x0", "x"] = "x0",
        jacobian: bool = True,
        normalize: bool = True,
        minimum: float | None = None,
    ) -> None:
        if of not in ("x0", "x"):
            raise ValueError(f'an energy is of "x0" or of "x"; got {of!r}')
        if isinstance(evaluate, NamedBranches):
            if name in evaluate.branches:
                raise ValueError(f'there is a branch "{name}" already; give this energy another name')
            self.branches = frozenset(evaluate.branches) | {name}
        self.energy, self.name, self.of, self.jacobian = energy, name, of, jacobian
        self.normalize, self.minimum = normalize, minimum
        self.evaluate: Evaluate = evaluate.evaluate if isinstance(evaluate, with_energy) else evaluate
        before = evaluate.energies if isinstance(evaluate, with_energy) else ()
        self.energies: tuple[with_energy, ...] = (*before, self)  # all of them, around `self.evaluate`

    @property
    def _through(self) -> bool:
        return self.of == "x0" and self.jacobian

    def __call__(self, x: Tensor, level: Level, branches: Sequence[str]) -> Mapping[str, Prediction]:
        energies = {energy.name: energy for energy in self.energies if energy.name in branches}
        if not energies:
            return self.evaluate(x, level, branches)
        others = tuple(dict.fromkeys(["cond", *(name for name in branches if name not in energies)]))
        through = any(energy._through for energy in energies.values())
        with torch.enable_grad() if through else nullcontext():
            x_in = x.detach().requires_grad_() if through else x
            raw = dict(self.evaluate(x_in, level, others))
        x0 = raw["cond"].x0
        shifts = {name: energy._shift(x_in, x0, level) for name, energy in energies.items()}
        raw = {name: _detached(p, x) for name, p in raw.items()} if through else raw
        return raw | {name: replace(raw["cond"], score_shift=score_shift) for name, score_shift in shifts.items()}

    def _shift(self, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """The shift of the score, (B, ...); the graph from x to x0 is kept for other energies."""
        with torch.enable_grad():
            at = (x if self.of == "x" else x0).detach().requires_grad_()
            value = self.energy(at)
            if value.shape != x.shape[:1]:
                raise ValueError(f"an energy gives a number a sample, shape ({len(x)},); got {tuple(value.shape)}")
            (slope,) = torch.autograd.grad(value.sum(), at)  # in x0, or in x
            gradient = slope
            if self._through:
                (gradient,) = torch.autograd.grad(x0, x, slope, retain_graph=True)
        to_shift = level.alpha / level.sigma**2  # of a move of the denoised estimate
        if not self.normalize:
            return -gradient if self.of == "x" or self.jacobian else -to_shift * gradient
        direction = gradient / inner(gradient, gradient).sqrt().clamp(min=1e-30).to(gradient.dtype)
        length = torch.full_like(inner(slope, direction), level.sigma / math.hypot(level.alpha, level.sigma))
        length = length * math.sqrt(x[0].numel())
        if self.of == "x0" and self.minimum is not None:
            fall = inner(slope, direction)  # of the energy over a unit of length
            above = (value.detach() - self.minimum).clamp(min=0).to(fall.dtype).reshape(fall.shape)
            length = torch.where(fall > 0, torch.minimum(length, above / fall.clamp(min=1e-30)), 0)
        return -to_shift * length.to(x.dtype) * direction


def _detached(p: Prediction, x: Tensor) -> Prediction:
    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach()

    return Prediction(x, p.level, p.x0.detach(), cut(p.renoise_eps), cut(p.score_shift), cut(p.variance_fraction))


def colour(target: Sequence[float]) -> Energy:
    """The squared distance of each image's mean colour, (B, C, H, W) -> (B, C), from `target`."""

    def energy(x0: Tensor) -> Tensor:
        return (x0.flatten(2).mean(2) - x0.new_tensor(target)).square().sum(1)

    return energy


def inpainting(known: Tensor, mask: Tensor) -> Energy:
    """The squared distance from `known` where `mask` is 1, summed; both broadcast against (B, C, H, W)."""

    def energy(x0: Tensor) -> Tensor:
        return (mask * (x0 - known)).square().flatten(1).sum(1)

    return energy


def similarity(features: Callable[[Tensor], Tensor], reference: Tensor) -> Energy:
    """1 - cosine between features(x0) and those of a reference, (B, D) or (1, D)."""

    def energy(x0: Tensor) -> Tensor:
        return 1 - torch.nn.functional.cosine_similarity(features(x0).flatten(1), reference.flatten(1), dim=1)

    return energy
