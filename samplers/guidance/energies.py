"""Guidance by any differentiable function: p(y | x) of a classifier becomes exp(-energy(x)) (Bansal et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from samplers.level import Evaluate, Level, NamedBranches, Prediction

Energy: TypeAlias = Callable[[Tensor], Tensor]  # (B, ...) -> (B,)


class with_energy:  # noqa: N801 - used as a function
    """`evaluate` with one more branch, `name`, whose shift is minus the gradient in x_t of `energy`.

    of="x0": of the denoised estimate of "cond", by default through the denoiser's Jacobian (which `evaluate` must let
    autograd see); without it, dx0 / dx_t is taken as alpha / sigma^2, that of a posterior of unit variance, so that the
    estimate moves by minus the gradient and nothing is differentiated but the energy. of="x": of x_t itself. Several
    energies are one around the other, and share one evaluation.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        energy: Energy,
        *,
        name: str = "energy",
        of: Literal["x0", "x"] = "x0",
        jacobian: bool = True,
    ) -> None:
        if of not in ("x0", "x"):
            raise ValueError(f'an energy is of "x0" or of "x"; got {of!r}')
        if isinstance(evaluate, NamedBranches):
            if name in evaluate.branches:
                raise ValueError(f'there is a branch "{name}" already; give this energy another name')
            self.branches = frozenset(evaluate.branches) | {name}
        self.energy, self.name, self.of, self.jacobian = energy, name, of, jacobian
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
        shifts = {name: -energy._gradient(x_in, x0, level) for name, energy in energies.items()}
        raw = {name: _detached(p, x) for name, p in raw.items()} if through else raw
        return raw | {name: replace(raw["cond"], score_shift=score_shift) for name, score_shift in shifts.items()}

    def _gradient(self, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """The energy's gradient in x_t, (B, ...); the graph from x to x0 is kept for other energies."""
        with torch.enable_grad():
            at = x if self._through else (x if self.of == "x" else x0).detach().requires_grad_()
            value = self.energy(x0 if self._through else at)
            if value.shape != x.shape[:1]:
                raise ValueError(f"an energy gives a number a sample, shape ({len(x)},); got {tuple(value.shape)}")
            (gradient,) = torch.autograd.grad(value.sum(), at, retain_graph=self._through)
        if self.of == "x0" and not self.jacobian:
            gradient = level.alpha / level.sigma**2 * gradient
        return gradient


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
