"""What guidances share: a scale, where in the noise it acts, how it varies there, and the checks of all three."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from samplers.level import Guidance, Level, Prediction, Tensor

Interval = Sequence[float | None] | None
Curve = str | Callable[[float], float]
MAX_SCALE = 1e6  # beyond it float32 images are noise at best

# Factors on a strength as a function of the angle u = 2 / pi arctan(sigma / alpha), 1 at pure noise and 0 at the data
# (Wang et al. 2024, arXiv:2404.13040, section 3: both rise towards the data, and keep the mean of 1 over u)
CURVES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "linear": lambda u: 2 * (1 - u),
    "cosine": lambda u: 1 + math.cos(math.pi * u),
}


def check_scale(what: str, scale: Any) -> None:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= MAX_SCALE:
        raise ValueError(f"{what} must be a finite number, not negative, at most {MAX_SCALE:g}; got {scale!r}")


def check_interval(what: str, interval: Interval) -> None:
    if interval is None:
        return
    try:
        low, high = _ends(interval)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be [low, high] in sigma / alpha (None: open); got {interval!r}") from None
    if not 0 <= low < high:  # false for NaN too
        raise ValueError(f"{what} must have 0 <= low < high; got {interval!r}")


def check_curve(what: str, curve: Curve) -> None:
    if not callable(curve) and curve not in CURVES:
        raise ValueError(f"{what} must be one of {', '.join(CURVES)}, or a function of u in [0, 1]; got {curve!r}")


def inside(interval: Interval, level: Level) -> bool:
    """Whether low <= sigma / alpha <= high (Kynkaanniemi et al. 2024, arXiv:2404.07724, section 3.1)."""
    if interval is None:
        return True
    low, high = _ends(interval)
    return low <= level.noise_ratio <= high


def curve_at(curve: Curve, level: Level) -> float:
    """The factor of a curve at a level."""
    factor = (CURVES[curve] if isinstance(curve, str) else curve)(2 / math.pi * math.atan2(level.sigma, level.alpha))
    if not math.isfinite(factor):
        raise ValueError(f"the curve of a guidance gave {factor} at sigma / alpha = {level.noise_ratio:.6g}")
    return factor


def _ends(interval: Sequence[float | None]) -> tuple[float, float]:
    low, high = interval
    return 0.0 if low is None else float(low), math.inf if high is None else float(high)


@dataclass(frozen=True)
class ScaledDifferenceGuidance(Guidance):
    """A guidance by the difference of the conditional prediction and another branch; scale 1 is the conditional model.

    At a level its scale is 1 + (scale - 1) * curve. Where that is 1, or outside the interval, it needs nothing and
    changes nothing.
    """

    scale: float
    against: str = "uncond"
    interval: Interval = None
    curve: Curve = "constant"

    what: ClassVar[str] = "the guidance"

    def __post_init__(self) -> None:
        check_scale(f"{self.what} scale", self.scale)
        check_interval(f"{self.what} interval", self.interval)
        check_curve(f"{self.what} curve", self.curve)

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.scale == 1 else (self.against,)

    def scale_at(self, level: Level) -> float:
        if self.scale == 1 or not inside(self.interval, level):
            return 1.0
        return self.scale if self.curve == "constant" else 1 + (self.scale - 1) * curve_at(self.curve, level)

    def acts(self, level: Level) -> bool:
        return self.scale_at(level) != 1

    def branches(self, level: Level) -> tuple[str, ...]:
        return (self.against,) if self.acts(level) else ()

    def apply(self, prediction: Prediction, raw: Mapping[str, Prediction]) -> Prediction:
        if not self.acts(prediction.level):
            return prediction
        return self.guided(prediction, raw["cond"], raw[self.against], self.scale_at(prediction.level))

    def guided(self, p: Prediction, cond: Prediction, other: Prediction, scale: float) -> Prediction:
        """x0 = other + scale * (cond - other), written as a sum so that linear guidances add up and commute."""
        if scale == 0 and p.x0 is cond.x0:
            return replace(p, x0=other.x0)
        return replace(p, x0=p.x0 + (scale - 1) * (cond.x0 - other.x0))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample: (B, 1, ..., 1), in float32 at least."""
    return (at_least_float32(a) * at_least_float32(b)).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x
