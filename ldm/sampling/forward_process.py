"""The forward process: a noise schedule with the target of a network on it, as diffusers' schedulers describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor

from ldm.runtime.errors import UserError
from samplers import (
    TARGETS,
    DiscreteSchedule,
    EDMSchedule,
    EDMTarget,
    FlowSchedule,
    FlowTarget,
    Schedule,
    Target,
    targets_on,
)

_DDIM = {"timestep_spacing": "trailing", "steps_offset": 1, "set_alpha_to_one": True}
_LEARNED_RANGE = "learned_range"  # diffusers' variance_type of a learned variance as Nichol & Dhariwal 2021 define it
# By family: the scheduler of diffusers with the same process, and its settings for sampling
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "variance preserving": ("DDIMScheduler", {**_DDIM, "clip_sample": False, "thresholding": False}),
    # a prediction_type of epsilon is there the name of a positive c_out
    "edm": ("EDMEulerScheduler", {"sigma_schedule": "exponential", "prediction_type": "epsilon"}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {}),
}
# Of a learned variance: the only scheduler of diffusers that takes the output of twice the channels
_LEARNED_SCHEDULER: tuple[str, dict[str, Any]] = (
    "DDPMScheduler",
    {"timestep_spacing": "trailing", "variance_type": _LEARNED_RANGE, "clip_sample": False, "thresholding": False},
)


class SchedulerConfig(TypedDict, total=False):
    """What is read of a scheduler_config.json."""

    _class_name: str
    prediction_type: str
    num_train_timesteps: int
    beta_schedule: str
    beta_start: float
    beta_end: float
    trained_betas: list[float] | None
    rescale_betas_zero_snr: bool
    sigma_min: float | None
    sigma_max: float | None
    sigma_data: float
    shift: float | None
    use_dynamic_shifting: bool


@dataclass(frozen=True)
class Process:
    """A noise schedule with what a network on it predicts.

    With `learned_variance` the output has twice the channels: the second half is where the variance of a step of `ddpm`
    lies between the small one (-1) and the large one (1), in the logarithm (Nichol & Dhariwal 2021, arXiv:2102.09672,
    eq. 15).
    """

    schedule: Schedule
    prediction: Target
    learned_variance: bool = False

    def __post_init__(self) -> None:
        family = self.schedule.family
        if self.prediction.family != family:
            problem = f"on a {family} schedule a network predicts {' or '.join(targets_on(family))}"
            raise UserError(f"prediction_type {self.prediction.name}: {problem}")
        if self.learned_variance and family != DiscreteSchedule.family:
            raise UserError(f"a {family} schedule has no steps of `ddpm` whose variance could be learned")

    def precondition(self, x: Tensor, t: Any, alpha: Any, sigma: Any) -> tuple[Tensor, Any]:
        """The network's input for x (B, C, h, w), and its own time for the schedule's time t."""
        return self.prediction.precondition(x, alpha, sigma), self.prediction.c_noise(t, alpha, sigma)

    def config(self) -> dict[str, Any]:
        """scheduler_config.json of the scheduler of diffusers with the same process."""
        name, settings = _LEARNED_SCHEDULER if self.learned_variance else SCHEDULERS[self.schedule.family]
        return {"_class_name": name, **self.schedule.config(), **self.prediction.config(), **settings}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Process:
        """From a scheduler_config.json of diffusers; `ValueError` or `TypeError` for what is not one of the three."""
        name, prediction = str(config.get("_class_name", "")), config.get("prediction_type", "epsilon")
        if name.startswith("FlowMatch"):
            return cls(FlowSchedule.from_config(config), FlowTarget())
        if name.startswith("EDM"):
            if prediction != "epsilon":
                raise ValueError(f"prediction_type of {name} must be epsilon; got {prediction!r}")
            return cls(EDMSchedule.from_config(config), EDMTarget(config.get("sigma_data", EDMTarget.sigma_data)))
        if prediction not in TARGETS:
            raise ValueError(f"prediction_type must be one of {', '.join(TARGETS)}; got {prediction!r}")
        variance = config.get("variance_type")
        if variance == "learned":  # diffusers takes it for a variance, guided-diffusion for a log-variance
            raise ValueError(f"variance_type learned is not supported; of learned variances {_LEARNED_RANGE} is")
        return cls(DiscreteSchedule.from_config(config), TARGETS[prediction](), variance == _LEARNED_RANGE)
