"""Guidance with different scales for coarse and fine detail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from samplers.guidance.base import ScaledDifferenceGuidance, check_scale, curve_at, inside
from samplers.level import Level, Prediction, Tensor
from samplers.registry import guidance


@guidance("fdg", source="Sadat et al. 2025, arXiv:2506.19713, Algorithm 1 (frequency-decoupled guidance)")
@dataclass(frozen=True)
class FrequencyDecoupled(ScaledDifferenceGuidance):
    """CFG with `scale` for the fine band of a Laplacian pyramid of two bands, and `low` for the coarse one.

    For images (B, C, H, W). The pyramid is linear, so this is x0 += (scale - 1) * fine + (low - 1) * coarse of the
    difference, and adds up with the linear guidances.
    """

    low: float = 1.0

    what: ClassVar[str] = "the fdg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("the fdg low", self.low)

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.scale == 1 == self.low else (self.against,)

    def acts(self, level: Level) -> bool:
        return bool(self.needs) and inside(self.interval, level)

    def guided(self, p: Prediction, cond: Prediction, other: Prediction, scale: float) -> Prediction:
        d = cond.x0 - other.x0
        if d.ndim != 4:
            raise ValueError(f"fdg needs images, (B, C, H, W); got the shape {tuple(d.shape)}")
        coarse = blur(d)
        factor = curve_at(self.curve, p.level)
        return replace(p, x0=p.x0 + factor * ((self.scale - 1) * (d - coarse) + (self.low - 1) * coarse))


def blur(x: Tensor) -> Tensor:
    """Down to half the size and up again, the coarse band (Burt & Adelson 1983): (B, C, H, W) -> (B, C, H, W)."""
    import torch.nn.functional as F

    weights = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (weights[:, None] * weights[None, :]).expand(x.shape[1], 1, 5, 5)
    x_half = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), kernel, stride=2, groups=x.shape[1])
    return F.interpolate(x_half, size=x.shape[-2:], mode="bilinear", align_corners=False)
