"""What a network may be trained to output, one class a target. Everywhere x = alpha * x0 + sigma * eps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from samplers.level import Tensor

Coefficient = float | Tensor  # a float, or a tensor that broadcasts against the data


@dataclass(frozen=True)
class Target(ABC):
    """What the output of a network is compared with, and the way from that output to x0."""

    name: ClassVar[str]  # diffusers' prediction_type
    family: ClassVar[str] = "variance preserving"  # the schedules that it is defined on
    time_sampling: ClassVar[Literal["uniform", "log_normal"]] = "uniform"  # of the training, in its paper

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """The tensor that the network's output is compared with."""

    @abstractmethod
    def x0(self, output: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """The denoised estimate that the network's output means."""

    @abstractmethod
    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """sigma^2 times the squared error of the output where that of x0 is 1."""

    def precondition(self, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """The network's input for x."""
        return x

    def c_noise(self, t: Any, alpha: Any, sigma: Any) -> Any:
        """The network's time for the schedule's time t, a float or (B,)."""
        return t

    def config(self) -> dict[str, Any]:
        """The keys of a diffusers scheduler_config.json that describe this target."""
        return {"prediction_type": self.name}

    @property
    def log_normal(self) -> tuple[float, float]:
        """Mean and deviation of a normal log(sigma / alpha) in training (Karras et al. 2022, Table 1, unit data)."""
        return math.log(2) - 1.2, 1.2

    def min_snr_weight(self, alpha: Tensor, sigma: Tensor, gamma: float = 5.0) -> Tensor:
        """The weight of the squared error that weighs that of x0 by min(SNR, gamma) (Hang et al. 2023, eq. 7)."""
        if not gamma > 0:
            raise ValueError(f"gamma must be positive; got {gamma}")
        return self._min_snr_weight(alpha, sigma, gamma)

    def p2_weight(self, alpha: Tensor, sigma: Tensor, gamma: float = 1.0, k: float = 1.0) -> Tensor:
        """The weight of the squared error that weighs that of eps by (k + SNR)^-gamma (Choi et al. 2022, eq. 8)."""
        if not (gamma >= 0 and k > 0):
            raise ValueError(f"gamma must be 0 or more and k positive; got {gamma} and {k}")
        return self._eps_weight((sigma**2 / (k * sigma**2 + alpha**2)) ** gamma, alpha, sigma)

    def _min_snr_weight(self, alpha: Tensor, sigma: Tensor, gamma: float) -> Tensor:
        return (alpha**2).minimum(gamma * sigma**2) / self.error_scale(alpha, sigma)

    def _eps_weight(self, weight: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The weight of the squared error from that of eps, which is SNR times that of x0."""
        return weight * alpha**2 / self.error_scale(alpha, sigma)


class EpsilonTarget(Target):
    """The noise (Ho et al. 2020)."""

    name: ClassVar[str] = "epsilon"

    def target(self, x0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        return eps

    def x0(self, output: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        _check_signal(self.name, alpha)
        return (x - sigma * output) / alpha

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha**2

    def _min_snr_weight(self, alpha: Tensor, sigma: Tensor, gamma: float) -> Tensor:
        return (gamma * sigma**2 / alpha**2).clamp(max=1)  # 1, not 0 / 0, at alpha = 0

    def _eps_weight(self, weight: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return weight


class VTarget(Target):
    """v = alpha * eps - sigma * x0, where alpha^2 + sigma^2 = 1 (Salimans & Ho 2022, appendix D)."""

    name: ClassVar[str] = "v_prediction"

    def target(self, x0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        return alpha * eps - sigma * x0

    def x0(self, output: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        return alpha * x - sigma * output

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha**2 + sigma**2


class SampleTarget(Target):
    """The data."""

    name: ClassVar[str] = "sample"

    def target(self, x0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        return x0

    def x0(self, output: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        return output

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma**2

    def _min_snr_weight(self, alpha: Tensor, sigma: Tensor, gamma: float) -> Tensor:
        return (alpha**2 / sigma**2).clamp(max=gamma)


class FlowTarget(Target):
    """The velocity eps - x0 of a rectified flow, with time towards noise (Liu et al. 2022, eq. 1)."""

    name: ClassVar[str] = "flow_prediction"
    family: ClassVar[str] = "flow"

    def target(self, x0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        return eps - x0

    def x0(self, output: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        return (x - sigma * output) / (alpha + sigma)

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha + sigma) ** 2

    def c_noise(self, t: Any, alpha: Any, sigma: Any) -> Any:
        return t + 1  # T s, as in Stable Diffusion 3

    def config(self) -> dict[str, Any]:
        return {}  # implied by diffusers' scheduler

    @property
    def log_normal(self) -> tuple[float, float]:
        return 0.0, 1.0  # logit-normal times (Esser et al. 2024, section 3.1)


@dataclass(frozen=True)
class EDMTarget(Target):
    """The preconditioned output of EDM for data of standard deviation `sigma_data` (Karras et al. 2022, Table 1)."""

    sigma_data: float = 0.5

    name: ClassVar[str] = "edm"
    family: ClassVar[str] = "edm"
    time_sampling: ClassVar[Literal["uniform", "log_normal"]] = "log_normal"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be above 0, got {self.sigma_data}")

    def target(self, x0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        c_skip, c_out, _ = self._scales(alpha, sigma)
        return (x0 - c_skip * (x0 + sigma / alpha * eps)) / c_out

    def x0(self, output: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        _check_signal(self.name, alpha)
        c_skip, c_out, _ = self._scales(alpha, sigma)
        return c_skip * (x / alpha) + c_out * output

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma**2 + alpha**2 * self.sigma_data**2) / self.sigma_data**2  # sigma^2 / c_out^2

    def precondition(self, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        return self._scales(alpha, sigma)[2] * x / alpha

    def c_noise(self, t: Any, alpha: Any, sigma: Any) -> Any:
        ratio = sigma / alpha
        return math.log(ratio) / 4 if isinstance(ratio, float) else ratio.log().reshape(t.shape) / 4

    def config(self) -> dict[str, Any]:
        return {"sigma_data": self.sigma_data}

    @property
    def log_normal(self) -> tuple[float, float]:
        return math.log(2 * self.sigma_data) - 1.2, 1.2

    def _scales(self, alpha: Coefficient, sigma: Coefficient) -> tuple[Coefficient, Coefficient, Coefficient]:
        """c_skip, c_out and c_in of x / alpha."""
        r = sigma / alpha
        norm = (r * r + self.sigma_data**2) ** 0.5
        return self.sigma_data**2 / norm**2, r * self.sigma_data / norm, 1 / norm


TARGETS: Mapping[str, type[Target]] = MappingProxyType(
    {target.name: target for target in (EpsilonTarget, VTarget, SampleTarget, FlowTarget, EDMTarget)}
)


def targets_on(family: str) -> tuple[str, ...]:
    """The names of the targets on a family of schedules, the usual one first."""
    return tuple(name for name, target in TARGETS.items() if target.family == family)


def _check_signal(name: str, alpha: Coefficient) -> None:
    if isinstance(alpha, float) and alpha == 0:
        raise ValueError(f"{name} gives no x0 at alpha = 0 (pure noise): train v_prediction, sample or flow_prediction")
