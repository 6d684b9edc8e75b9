"""Classifier-free guidance, and its variants that differ in the branch alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from samplers.guidance.base import Curve, Interval, ScaledDifferenceGuidance, check_scale, inside
from samplers.level import Level, Prediction
from samplers.registry import guidance


@guidance(
    "cfg", source="Ho & Salimans 2022, arXiv:2207.12598, eq. 6; interval: Kynkaanniemi et al. 2024, arXiv:2404.07724"
)
@dataclass(frozen=True)
class ClassifierFree(ScaledDifferenceGuidance):
    """x0 = other + scale * (cond - other).

    scale 1 is the conditional model and evaluates nothing else; scale 0 is the other branch, both bit for bit.
    `against` names the other branch: "uncond" is also where a negative prompt or a negative class stands. Outside
    `interval`, in sigma / alpha, the other branch is not evaluated. `curve` varies the strength with the noise.
    """


@guidance("cfgpp", source="Chung et al. 2024, arXiv:2406.08070, Algorithm 2 (CFG++)")
@dataclass(frozen=True)
class CFGPlusPlus(ScaledDifferenceGuidance):
    """x0 = uncond + scale * (cond - uncond), the scale from 0 to 1, and back to noise along the unconditional eps.

    Even at scale 1 it is not the conditional model, since it re-noises with the other branch; scale 0 is that branch
    alone.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.against,)

    def acts(self, level: Level) -> bool:
        return inside(self.interval, level)

    def guided(self, p: Prediction, cond: Prediction, other: Prediction, scale: float) -> Prediction:
        return replace(super().guided(p, cond, other, scale), renoise_eps=other.eps)


@guidance("autoguidance", source="Karras et al. 2024, arXiv:2406.02507, eq. 3")
def autoguidance(scale: float, interval: Interval = None, curve: Curve = "constant") -> ClassifierFree:
    """Away from "weak": a smaller or less trained network with the same condition."""
    return ClassifierFree(scale, "weak", interval, curve)


@guidance("pag", source="Ahn et al. 2024, arXiv:2403.17377, eq. 16 (perturbed-attention guidance)")
def perturbed_attention(scale: float, interval: Interval = None, curve: Curve = "constant") -> ClassifierFree:
    """cond + scale * (cond - perturbed), where "perturbed" has the identity in place of some self-attention maps."""
    return _beyond("pag", scale, "perturbed", interval, curve)


@guidance("seg", source="Hong 2024, arXiv:2408.00760, eq. 13 (smoothed energy guidance)")
def smoothed_energy(scale: float, interval: Interval = None, curve: Curve = "constant") -> ClassifierFree:
    """cond + scale * (cond - blurred), where "blurred" has some self-attention queries blurred."""
    return _beyond("seg", scale, "blurred", interval, curve)


@guidance("slg", source="Stability AI 2024, Stable Diffusion 3.5 (skip-layer guidance)")
def skip_layer(scale: float, interval: Interval = None, curve: Curve = "constant") -> ClassifierFree:
    """cond + scale * (cond - skipped), where "skipped" leaves some layers out."""
    return _beyond("slg", scale, "skipped", interval, curve)


def _beyond(name: str, scale: float, against: str, interval: Interval, curve: Curve) -> ClassifierFree:
    check_scale(f"the {name} scale", scale)
    return ClassifierFree(1 + scale, against, interval, curve)
