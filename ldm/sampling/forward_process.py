"""The forward process with what a network on it is shown, told and trained to say: three families, as in diffusers.

Variance preserving (`DDIMScheduler` and its kin), rectified flow (`FlowMatchEulerDiscreteScheduler`), and EDM
(`EDMEulerScheduler`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from ldm.runtime.errors import UserError
from samplers import (
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    Schedule,
    Target,
    edm_scales,
    training_target,
    x0_from_output,
)

FAMILIES: dict[str, tuple[str, ...]] = {  # what may be predicted on each family of schedules
    "edm": ("edm",),
    "flow": ("flow_prediction",),
    "variance preserving": ("epsilon", "v_prediction", "sample"),
}


@dataclass(frozen=True)
class Process:
    """A noise schedule with the target of a network on it; `sigma_data` is the data's spread, for `edm` alone."""

    schedule: Schedule
    target: Target
    sigma_data: float = 1.0  # latents have unit variance

    def __post_init__(self) -> None:
        family = family_of(self.schedule)
        if self.target not in FAMILIES[family]:
            takes = " or ".join(FAMILIES[family])
            raise UserError(f"prediction_type {self.target}: on a {family} schedule a network predicts {takes}")
        if not 0 < self.sigma_data < math.inf:
            raise UserError(f"sigma_data must be above 0, got {self.sigma_data}")

    def shown(self, x: Tensor, t: Any, alpha: Any, sigma: Any) -> tuple[Tensor, Any]:
        """What the network is given for x (B, C, h, w) and the schedule's time t: its input, and its own time.

        EDM: c_in x / alpha and c_noise = log(sigma / alpha) / 4 (Karras et al. 2022, Table 1). Flow: T s = t + 1, as
        Stable Diffusion 3 has it. Else x and t.
        """
        if self.target == "edm":
            ratio = sigma / alpha
            log = ratio.log().reshape(t.shape) if isinstance(t, Tensor) else math.log(ratio)
            return edm_scales(alpha, sigma, self.sigma_data)[2] * x / alpha, log / 4
        return x, t + 1 if self.target == "flow_prediction" else t

    def x0(self, output: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """The denoised estimate that the network's output means."""
        return x0_from_output(self.target, output, x, alpha, sigma, self.sigma_data)

    def wanted(self, x0: Tensor, eps: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """What the network's output is compared with in training."""
        return training_target(self.target, x0, eps, alpha, sigma, self.sigma_data)

    @property
    def log_normal(self) -> tuple[float, float]:
        """Mean and deviation of log(sigma / alpha) where it is drawn from a normal distribution.

        On a flow the standard one, by which time itself is logit-normal (Esser et al. 2024, section 3.1); else that of
        Karras et al. 2022, Table 1, in units of the data's spread.
        """
        if isinstance(self.schedule, FlowSchedule):
            return 0.0, 1.0
        return math.log(2 * self.sigma_data) - 1.2, 1.2

    def config(self) -> dict[str, Any]:
        """scheduler_config.json of the scheduler of diffusers with the same process."""
        if isinstance(self.schedule, DiscreteSchedule):
            return {
                "_class_name": "DDIMScheduler",
                **self.schedule.config(),
                "prediction_type": self.target,
                "timestep_spacing": "trailing",
                "steps_offset": 1,
                "set_alpha_to_one": True,
                "clip_sample": False,
                "thresholding": False,
            }
        if isinstance(self.schedule, EDMSchedule):
            return {
                "_class_name": "EDMEulerScheduler",
                "num_train_timesteps": self.schedule.num_train_timesteps,
                "sigma_min": self.schedule.sigma_min,
                "sigma_max": self.schedule.sigma_max,
                "sigma_data": self.sigma_data,
                "sigma_schedule": "exponential",
                "prediction_type": "epsilon",  # there the name of a positive c_out
            }
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": self.schedule.num_train_timesteps,
            "shift": 1.0,
            "use_dynamic_shifting": False,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Process:
        """From a scheduler_config.json of diffusers; `ValueError` or `TypeError` for what is not one of the three."""
        name = str(config.get("_class_name", ""))
        if name.startswith("FlowMatch"):
            if config.get("shift", 1.0) != 1 or config.get("use_dynamic_shifting"):
                raise ValueError(f"shift {config.get('shift')}: only flows without a shift of time are supported")
            return cls(FlowSchedule(config.get("num_train_timesteps", 1000)), "flow_prediction")
        if name.startswith("EDM"):
            if config.get("prediction_type", "epsilon") != "epsilon":
                raise ValueError(f"prediction_type of {name} must be epsilon; got {config['prediction_type']!r}")
            ends = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
            schedule = EDMSchedule(*ends, config.get("num_train_timesteps", 1000))
            return cls(schedule, "edm", config.get("sigma_data", 0.5))
        target = config.get("prediction_type", "epsilon")
        if target not in get_args(Target):
            raise ValueError(f"prediction_type must be one of {', '.join(get_args(Target))}; got {target!r}")
        return cls(DiscreteSchedule.from_config(config), target)


def family_of(schedule: Schedule) -> str:
    """Which of FAMILIES a schedule belongs to."""
    if isinstance(schedule, EDMSchedule):
        return "edm"
    return "flow" if isinstance(schedule, FlowSchedule) else "variance preserving"


def same_schedule(a: Schedule, b: Schedule) -> bool:
    """Whether two schedules have the same level at each time."""
    return _facts(a) == _facts(b)


def _facts(schedule: Schedule) -> dict[str, Any]:
    found: dict[str, Any] = {"family": family_of(schedule), "num_train_timesteps": schedule.num_train_timesteps}
    if isinstance(schedule, EDMSchedule):
        found |= {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}
    return found | (schedule.config() if isinstance(schedule, DiscreteSchedule) else {})
