"""What follows the linear guidances: the spread of the estimate, its extreme values, the part of it that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from samplers.guidance.base import at_least_float32, check_scale
from samplers.level import Guidance, Prediction, Tensor
from samplers.registry import guidance


@guidance("rescale", source="Lin et al. 2024, arXiv:2305.08891, eq. 15 and 16", evaluations=0)
@dataclass(frozen=True)
class Rescale(Guidance):
    """Gives the guided x0 the standard deviation of the conditional one, by the part `phi` of the way, a sample each.

    Of x0, so that it means the same whatever the network predicts (the paper's is of v, near pure noise the same).
    """

    phi: float = 0.7

    stage: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_scale("the rescale phi", self.phi)
        if self.phi > 1:
            raise ValueError(f"the rescale phi must be at most 1; got {self.phi}")

    def apply(self, prediction: Prediction, raw: Mapping[str, Prediction]) -> Prediction:
        x0, cond = prediction.x0, raw["cond"].x0
        if self.phi == 0 or x0 is cond:
            return prediction
        over = tuple(range(1, x0.ndim))
        ratio = cond.std(over, keepdim=True) / x0.std(over, keepdim=True).clamp(min=1e-12)  # (B, 1, ..., 1)
        return replace(prediction, x0=x0 * (1 + self.phi * (ratio - 1)))


@guidance("threshold", source="Saharia et al. 2022, arXiv:2205.11487, section 2.3 (dynamic threshold)", evaluations=0)
@dataclass(frozen=True)
class DynamicThreshold(Guidance):
    """Where the `quantile` s of a sample's |x0| is above `limit`, x0 is clipped to [-s, s] and shrunk by limit / s.

    For pixels in [-1, 1] the limit is 1; for latents of unit variance 3 or more.
    """

    quantile: float = 0.995
    limit: float = 1.0

    stage: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(f"the threshold quantile must be in (0, 1]; got {self.quantile!r}")
        if not 0 < self.limit < float("inf"):
            raise ValueError(f"the threshold limit must be a positive number; got {self.limit!r}")

    def apply(self, prediction: Prediction, raw: Mapping[str, Prediction]) -> Prediction:
        x0 = prediction.x0
        s = at_least_float32(x0.abs().flatten(1)).quantile(self.quantile, dim=1).clamp(min=self.limit).to(x0.dtype)
        s = s.reshape(-1, *[1] * (x0.ndim - 1))  # (B, 1, ..., 1)
        return replace(prediction, x0=x0.clamp(-s, s) * (self.limit / s))


@dataclass(frozen=True, eq=False)
class Keep(Guidance):
    """Inpainting: where `mask` is 1 the estimate is `known`, so that every solver ends there exactly; both broadcast.

    The rest is drawn given x_t, whose known part is `known` with the noise of that level (as in Lugmayr et al. 2022,
    arXiv:2201.09865, section 4.1, but along the solver's own path). Gradient guidance does not move the known part.
    """

    known: Tensor
    mask: Tensor

    stage: ClassVar[int] = 3

    def apply(self, prediction: Prediction, raw: Mapping[str, Prediction]) -> Prediction:
        x0 = self.mask * self.known + (1 - self.mask) * prediction.x0
        score_shift = None if prediction.score_shift is None else (1 - self.mask) * prediction.score_shift
        return replace(prediction, x0=x0, score_shift=score_shift)
