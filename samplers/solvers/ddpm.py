"""Ancestral sampling from the learned reverse process (Ho et al. 2020, arXiv:2006.11239)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from samplers.level import Denoise, Levels, Noise, Prediction, Step, Tensor, exp_neg_h, lincomb, no_noise, pairs
from samplers.registry import sampler


@sampler("ddpm", order=1, draws=True, source="Ho et al. 2020, arXiv:2006.11239, Algorithm 2")
def ddpm(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    noise: Noise = no_noise,
    variance: Literal["small", "large", "learned"] = "small",
) -> Iterator[Step]:
    """x_s ~ N(posterior mean of x0, variance), for any pair of levels t > s.

    `small` is the variance of q(x_s | x_t, x0), `large` that of q(x_t | x_s) (section 3.2); `learned` lies between the
    two where Prediction.variance_fraction says. Gradient guidance moves the mean by variance * shift (Dhariwal &
    Nichol 2021, Algorithm 1). The last step, to sigma = 0, draws nothing; there gradient guidance moves the mean by
    sigma_t^2 * shift if `large`, and not at all if `small` or `learned`, whose variance is 0 (guided-diffusion's code
    has small as here, large with the small variance of the step before, learned between that and sigma_t^2).
    """
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        keep = exp_neg_h(now, next) ** 2  # a^2 sigma_s^2 / sigma_t^2, with a = alpha_t / alpha_s
        small, large = next.sigma**2 * (1 - keep), now.sigma**2 * (1 - keep)
        shrink = now.alpha / next.alpha * (next.sigma / now.sigma) ** 2
        x = lincomb(shrink, p.x_base, (next.alpha * (1 - keep), p.x0))  # eq. 7
        std = _std(p, small, large, variance)
        if p.score_shift is not None:
            x = x + std**2 * p.score_shift
        if next.sigma > 0 and large > 0:
            x = x + std * noise(x, now, next)
        yield Step(x, next, p.denoised, i)


def _std(p: Prediction, small: float, large: float, variance: str) -> float | Tensor:
    if variance != "learned" or small == 0:
        return math.sqrt(large if variance == "large" else small)
    if p.variance_fraction is None:
        problem = "ddpm with variance = learned needs a network that was trained to predict a variance"
        raise ValueError(f"{problem} (Prediction.variance_fraction); take small or large")
    # Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15
    return (0.5 * (math.log(small) + (math.log(large) - math.log(small)) * p.variance_fraction)).exp()
