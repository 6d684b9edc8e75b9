"""Guidance by the gradient of a noisy classifier or of an energy, kept apart for the solver to use in its own form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from samplers.guidance.base import Curve, Interval, check_curve, check_interval, check_scale, curve_at, inside
from samplers.level import Guidance, Level, Prediction
from samplers.registry import guidance


@guidance("classifier", source="Dhariwal & Nichol 2021, arXiv:2105.05233, Algorithms 1 and 2")
@dataclass(frozen=True)
class Classifier(Guidance):
    """Adds scale * grad_x log p(y | x_t), the `score_shift` of the branch `name`, to the prediction's shift.

    Under `ddpm` that moves the mean by variance * shift (Algorithm 1), under ODE solvers eps by -sigma * shift
    (Algorithm 2). Several classifiers are several guidances with different branches.
    """

    scale: float
    name: str = "classifier"
    interval: Interval = None
    curve: Curve = "constant"

    def __post_init__(self) -> None:
        check_scale(f"the {self.name} scale", self.scale)
        check_interval(f"the {self.name} interval", self.interval)
        check_curve(f"the {self.name} curve", self.curve)

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.scale == 0 else (self.name,)

    def scale_at(self, level: Level) -> float:
        if self.scale == 0 or not inside(self.interval, level):
            return 0.0
        return self.scale if self.curve == "constant" else self.scale * curve_at(self.curve, level)

    def branches(self, level: Level) -> tuple[str, ...]:
        return () if self.scale_at(level) == 0 else (self.name,)

    def apply(self, prediction: Prediction, raw: Mapping[str, Prediction]) -> Prediction:
        scale = self.scale_at(prediction.level)
        if scale == 0:
            return prediction
        gradient = raw[self.name].score_shift
        if gradient is None:
            raise ValueError(f'the branch "{self.name}" brings no gradient (Prediction.score_shift): no classifier')
        score_shift = scale * gradient
        if prediction.score_shift is not None:
            score_shift = prediction.score_shift + score_shift
        return replace(prediction, score_shift=score_shift)


@guidance("energy", source="Bansal et al. 2023, arXiv:2302.07121; Yu et al. 2023, arXiv:2303.09833", evaluations=0)
def energy(scale: float, name: str = "energy", interval: Interval = None, curve: Curve = "constant") -> Classifier:
    """Down the gradient of a function of x_t or of x0, that `with_energy` makes a branch of."""
    return Classifier(scale, name, interval, curve)
