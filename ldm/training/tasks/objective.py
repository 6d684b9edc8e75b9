"""How a diffusion training draws its noise levels, weighs them, and what it does to the noise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.runtime.errors import UserError
from ldm.sampling.forward_process import Process
from ldm.training.randomness import StepRandom


@dataclass(frozen=True)
class ObjectiveConfig:
    """Noise levels and noise of the training; what is left alone is as in the paper of the process."""

    time_sampling: Literal["auto", "uniform", "log_normal"] = "auto"
    """uniform: all times alike; log_normal: log(sigma / alpha) is normal, which on a flow is the logit-normal of Stable
    Diffusion 3; auto: log_normal for edm, uniform for all others."""
    time_mean: float | None = None
    """Mean of log(sigma / alpha) under log_normal; unset: 0 on a flow, else -0.51 (-1.2 where the spread is 0.5)."""
    time_std: float | None = None
    """Its standard deviation; unset: 1 on a flow, else 1.2."""
    stratified_times: bool = False
    """Spread the times of each batch evenly over their distribution, for a loss of less variance."""
    p2_gamma: float | None = None
    """P2 weighting of the loss with this exponent (1 in the paper); unset: none. Instead of `snr_gamma`."""
    p2_k: float = 1.0
    """The k of P2's weight (k + SNR)^-gamma."""
    offset_noise: float = 0.0
    """Standard deviation of noise that is the same over each whole channel, added to the noise (0.1 is usual): the
    model learns to change the mean of a picture."""
    input_perturbation: float = 0.0
    """More noise in what the network is shown than it is asked to find, by this factor (0.1 in Ning et al. 2023)."""

    def __post_init__(self) -> None:
        for name in ("p2_gamma", "offset_noise", "input_perturbation"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"must be 0 or more, got {value}", setting=name)
        for name in ("p2_k", "time_std"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"must be above 0, got {value}", setting=name)

    def facts(self) -> dict[str, Any]:
        """What differs from the defaults: a run from before these settings were there goes on."""
        values, defaults = dataclasses.asdict(self), dataclasses.asdict(ObjectiveConfig())
        return {name: value for name, value in values.items() if value != defaults[name]}

    def check(self, process: Process, snr_gamma: float | None) -> None:
        """`UserError` for settings that contradict each other, or would not be heeded."""
        if self.p2_gamma is not None and snr_gamma is not None:
            raise UserError("`p2_gamma` and `snr_gamma` are two weightings of the same loss", remedy="give one")
        given = [name for name in ("time_mean", "time_std") if getattr(self, name) is not None]
        if given and not self._log_normal(process):
            raise UserError("the times are uniform", setting=given[0], remedy="add `time_sampling` log_normal")

    def times(self, process: Process, random: StepRandom) -> Tensor:
        """Times (B,) in [0, T-1] to train on, float32: whole numbers where they are uniform."""
        count = process.schedule.num_train_timesteps
        if not self._log_normal(process):
            if self.stratified_times:
                return (random.stratified("time") * count).floor().clamp(max=count - 1)
            return random.integers("time", count).to(torch.float32)
        if self.stratified_times:  # a number below 6e-8 would be at minus infinity
            normal = torch.special.ndtri(random.stratified("time").clamp(min=2**-24))
        else:
            normal = random.normal("log sigma", ())
        mean, std = process.prediction.log_normal
        mean, std = (own if given is None else given for own, given in ((mean, self.time_mean), (std, self.time_std)))
        return process.schedule.times_of(-(mean + std * normal))

    def noise(self, shape: tuple[int, ...], random: StepRandom) -> tuple[Tensor, Tensor]:
        """Noise (B, C, h, w) that the network shall find, and that which it is shown.

        eps + offset * (one number a channel) (Guttenberg 2023), whose variance is 1 + offset^2; shown with
        `input_perturbation` times more noise (Ning et al. 2023, eq. 7).
        """
        eps = random.normal("eps", shape)
        if self.offset_noise:
            eps = eps + self.offset_noise * random.normal("offset", (shape[0], 1, 1))
        if not self.input_perturbation:
            return eps, eps
        return eps, eps + self.input_perturbation * random.normal("perturbation", shape)

    def weight(self, process: Process, alpha: Tensor, sigma: Tensor, snr_gamma: float | None) -> Tensor | None:
        """The weight of each squared error, shaped like alpha; None for all alike."""
        if snr_gamma is not None:
            return process.prediction.min_snr_weight(alpha, sigma, snr_gamma)
        if self.p2_gamma is not None:
            return process.prediction.p2_weight(alpha, sigma, self.p2_gamma, self.p2_k)
        return None

    def _log_normal(self, process: Process) -> bool:
        name = process.prediction.time_sampling if self.time_sampling == "auto" else self.time_sampling
        return name == "log_normal"
