"""The loss of a learned variance: the second half of the U-Net's output, by the variational bound of a step."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from samplers import DiscreteSchedule
from samplers.level import exp_neg_h
from samplers.likelihood import decoder_nll, step_divergence

WEIGHT = 0.001  # lambda of the hybrid loss L_simple + lambda * L_vlb (Nichol & Dhariwal 2021, eq. 16)
_BINS = 256  # values of a pixel's channel


class VarianceLoss:
    """lambda * T * L_t of Nichol & Dhariwal 2021 (arXiv:2102.09672, eq. 3 to 6), in bits a dimension, of whole times t.

    As in guided-diffusion's code: the mean is taken as given, so that this loss teaches the variance alone; the
    variance of the first step, whose small one is 0, ranges from that of the second; and the first step of a model of
    pixels is the probability of their 256 values. Of latents, which have no such values, it is a density.
    """

    def __init__(self, schedule: DiscreteSchedule, *, pixels: bool, device: torch.device) -> None:
        T = schedule.num_train_timesteps
        self.weight, self.bins = WEIGHT * T, _BINS if pixels else None
        levels = [schedule.level(t) for t in range(T)]
        steps = []  # of the squared error of x0 the factor that makes it (m - m')^2 / small, log(small) and log(large)
        for s, t in itertools.pairwise(levels):
            fresh = 1 - exp_neg_h(t, s) ** 2  # share of the variance of a step
            gain = (s.alpha / s.sigma) ** 2 * fresh
            steps.append((gain, math.log(s.sigma**2 * fresh), math.log(t.sigma**2 * fresh)))
        first = (0.0, steps[0][1], math.log(levels[0].sigma ** 2))
        rows = list(zip(*[first, *steps], strict=True))
        dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.table = torch.tensor(rows, dtype=torch.float64).to(dtype).to(device)  # (3, T)

    def __call__(self, x0: Tensor, x0_hat: Tensor, fraction: Tensor, t: Tensor) -> Tensor:
        """(B,) for data x0 (B, C, h, w), its estimate, the fractions of the variance and times (B,)."""
        gain, low, high = self.table[:, t.long()].to(x0.dtype).view(3, -1, 1, 1, 1)  # (B, 1, 1, 1) each
        x0_hat, log_excess = x0_hat.detach(), fraction * (high - low)
        step = step_divergence(gain * (x0 - x0_hat) ** 2, log_excess)
        first = decoder_nll(x0, x0_hat, (0.5 * (low + log_excess)).exp(), self.bins)
        nats = torch.where(t.view(-1, 1, 1, 1) == 0, first, step)
        return self.weight / math.log(2) * nats.mean((1, 2, 3))
