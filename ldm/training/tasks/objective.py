"""How a diffusion training draws its noise levels, weighs them, and what it does to the noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.sampling.forward_process import Process
from ldm.training.randomness import StepRandom
from ldm.training.tasks.settings import ObjectiveConfig


class Objective:
    """Times, noise and weights of a training on one forward process."""

    def __init__(self, config: ObjectiveConfig, process: Process, snr_gamma: float | None) -> None:
        """`UserError` for settings that contradict each other, or that would have no effect."""
        self.config, self.process, self.snr_gamma = config, process, snr_gamma
        sampling = process.prediction.time_sampling if config.time_sampling == "auto" else config.time_sampling
        self.log_normal = sampling == "log_normal"
        config.check(snr_gamma, log_normal=self.log_normal)

    def times(self, random: StepRandom) -> Tensor:
        """Times (B,) in [0, T-1] to train on, float32: whole numbers where they are uniform."""
        config, schedule = self.config, self.process.schedule
        count = schedule.num_train_timesteps
        if not self.log_normal:
            if config.stratified_times:
                return (random.stratified("time") * count).floor().clamp(max=count - 1)
            return random.integers("time", count).to(torch.float32)
        if config.stratified_times:  # a number below 6e-8 would be at minus infinity
            normal = torch.special.ndtri(random.stratified("time").clamp(min=2**-24))
        else:
            normal = random.normal("log sigma", ())
        mean, std = self.process.prediction.log_normal
        mean = mean if config.time_mean is None else config.time_mean
        std = std if config.time_std is None else config.time_std
        return schedule.times_of(-(mean + std * normal))

    def noise(self, shape: tuple[int, ...], random: StepRandom) -> tuple[Tensor, Tensor]:
        """Noise (B, C, h, w) of the target, and that of the network's input.

        eps + offset * (one number a channel) (Guttenberg 2023), whose variance is 1 + offset^2; in the input with
        `input_perturbation` times more noise (Ning et al. 2023, eq. 7).
        """
        config = self.config
        eps = random.normal("eps", shape)
        if config.offset_noise:
            eps = eps + config.offset_noise * random.normal("offset", (shape[0], 1, 1))
        if not config.input_perturbation:
            return eps, eps
        return eps, eps + config.input_perturbation * random.normal("perturbation", shape)

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor | None:
        """The weight of each squared error, shaped like alpha; None for all alike."""
        config, target = self.config, self.process.prediction
        if self.snr_gamma is not None:
            return target.min_snr_weight(alpha, sigma, self.snr_gamma)
        if config.p2_gamma is not None:
            return target.p2_weight(alpha, sigma, config.p2_gamma, config.p2_k)
        return None
