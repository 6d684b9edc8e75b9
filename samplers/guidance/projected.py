"""Classifier-free guidance by the direction of the difference: APG, CFG-Zero*, tangential CFG."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from samplers.guidance.base import ScaledDifferenceGuidance, check_scale, inner
from samplers.level import Level, Prediction, Tensor
from samplers.registry import guidance


@guidance("apg", source="Sadat et al. 2024, arXiv:2410.02416, Algorithm 1 (adaptive projected guidance)")
@dataclass(frozen=True)
class AdaptiveProjected(ScaledDifferenceGuidance):
    """CFG on x0 with only `eta` of the part along cond, a norm of at most `norm` (0: any) and (negative) `momentum`.

    The momentum is over the evaluations of one run of a solver: noise that rises again starts another run.
    """

    eta: float = 0.0
    norm: float = 0.0
    momentum: float = 0.0
    _memory: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("the apg eta", self.eta)
        check_scale("the apg norm", self.norm)
        if not -1 < self.momentum < 1:
            raise ValueError(f"the apg momentum must be between -1 and 1; got {self.momentum!r}")

    def fresh(self) -> AdaptiveProjected:
        return replace(self)

    def guided(self, p: Prediction, cond: Prediction, other: Prediction, scale: float) -> Prediction:
        d = cond.x0 - other.x0
        if self.momentum:
            d = self._with_momentum(d, p.level)
        if self.norm > 0:
            d = d * (self.norm / inner(d, d).sqrt()).clamp(max=1).to(d.dtype)
        along = (inner(d, cond.x0) / inner(cond.x0, cond.x0).clamp(min=1e-24)).to(d.dtype) * cond.x0
        return replace(p, x0=p.x0 + (scale - 1) * (d - (1 - self.eta) * along))

    def _with_momentum(self, d: Tensor, level: Level) -> Tensor:
        memory = self._memory
        if memory and level.noise_ratio <= memory["ratio"] and memory["d"].shape == d.shape:
            d = d + self.momentum * memory["d"]
        memory.update(ratio=level.noise_ratio, d=d)
        return d


@guidance("cfg_zero", source="Fan et al. 2025, arXiv:2503.18886, Algorithm 1 (CFG-Zero*)")
@dataclass(frozen=True)
class ZeroStar(ScaledDifferenceGuidance):
    """CFG with the unconditional velocity first scaled to fit the conditional one: <v, u> / <u, u>.

    The velocity is that of the flow, eps - x0, whatever the schedule and the target. With `zero_init`, nothing moves
    at a level of pure noise (alpha = 0), where rectified flow starts.
    """

    zero_init: bool = True

    def guided(self, p: Prediction, cond: Prediction, other: Prediction, scale: float) -> Prediction:
        alpha, sigma = p.level.alpha, p.level.sigma
        if self.zero_init and alpha == 0:
            return replace(p, x0=p.x / (alpha + sigma))  # velocity 0
        v, u = ((p.x - (alpha + sigma) * q.x0) / sigma for q in (cond, other))
        fit = (inner(v, u) / (inner(u, u) + 1e-8)).to(u.dtype)
        return replace(p, x0=p.x0 - (scale - 1) * sigma / (alpha + sigma) * (v - fit * u))


@guidance("tcfg", source="Kwon et al. 2025, arXiv:2503.18137 (tangential damping)")
@dataclass(frozen=True)
class Tangential(ScaledDifferenceGuidance):
    """CFG with the unconditional eps reduced to its part along the first singular direction of the two eps.

    At a level of pure noise (alpha = 0), where the two are the same, it is CFG.
    """

    def guided(self, p: Prediction, cond: Prediction, other: Prediction, scale: float) -> Prediction:
        alpha, sigma = p.level.alpha, p.level.sigma
        if alpha == 0:
            return super().guided(p, cond, other, scale)
        c, u = cond.eps, other.eps
        cc, uu, cu = inner(c, c), inner(u, u), inner(c, u)
        angle = 0.5 * (2 * cu).atan2(cc - uu)  # of the first eigenvector of [[cc, cu], [cu, uu]]
        v = angle.cos().to(c.dtype) * c + angle.sin().to(c.dtype) * u
        along = (inner(u, v) / inner(v, v).clamp(min=1e-24)).to(c.dtype) * v
        return replace(p, x0=p.x0 - (scale - 1) * sigma / alpha * (c - along))
