"""Euler's and Heun's methods on the probability flow dy / dr = eps, in y = x / alpha and r = sigma / alpha.

In the letters of Karras et al. 2022 (arXiv:2206.00364) r is sigma, and eps is their d_i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from samplers.level import Denoise, Level, Noise, Step, Tensor, ddim_step, exp_neg_h, first_order_only, no_noise, pairs
from samplers.registry import sampler


@sampler(
    "euler", order=1, draws="s_churn", between="s_churn", source="Karras et al. 2022, arXiv:2206.00364, Algorithm 2"
)
def euler(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    *,
    noise: Noise = no_noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Algorithm 2 without its correction (lines 7 and 8); with s_churn = 0 it is DDIM."""
    for i, now, next in pairs(levels):
        x, hat = churn(x, now, len(levels) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        p = denoise(x, hat)
        x = ddim_step(p, next)
        yield Step(x, next, p.denoised, i)


@sampler(
    "heun",
    order=2,
    evaluations=2,
    draws="s_churn",
    between="s_churn",
    source="Karras et al. 2022, arXiv:2206.00364, Algorithm 2",
)
def heun(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    *,
    noise: Noise = no_noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Algorithm 2: the noise of the churn is added first, and the network evaluated at the level that this makes."""
    for i, now, next in pairs(levels):
        x, hat = churn(x, now, len(levels) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        p = denoise(x, hat)
        x = ddim_step(p, next)
        if not first_order_only(hat, next):
            q = denoise(x, next)
            x = ddim_step(p, next, (p.eps + q.eps) / 2)
        yield Step(x, next, p.denoised, i)


def churn(
    x: Tensor, now: Level, num_steps: int, noise: Noise, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> tuple[Tensor, Level]:
    """Lines 4 to 6 of Algorithm 2: x with some more noise, and the level to which that lifts it."""
    if s_churn == 0 or not s_tmin <= now.noise_ratio <= s_tmax or now.alpha == 0:
        return x, now
    assert now.path is not None
    gamma = min(s_churn / num_steps, 2**0.5 - 1)
    hat = now.path.level_of(-math.log(now.noise_ratio * (1 + gamma)))
    added = s_noise * (hat.noise_ratio**2 - now.noise_ratio**2) ** 0.5
    return hat.alpha * (x / now.alpha + added * noise(x, hat, now)), hat


def ancestral(now: Level, next: Level, eta: float) -> tuple[Level, float]:
    """Where to go without noise, and the noise that then leads to `next` (k-diffusion's sigma_down and sigma_up).

    With eta = 1 the noise is that of q(x_s | x_t, x0).
    """
    up = min(next.sigma, eta * next.sigma * (1 - exp_neg_h(now, next) ** 2) ** 0.5)
    return Level(next.t, next.alpha, (next.sigma**2 - up**2) ** 0.5), up


@sampler("euler_ancestral", order=1, draws="eta", source="Song et al. 2021, arXiv:2010.02502, eq. 12 as in k-diffusion")
def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    *,
    noise: Noise = no_noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Euler to a level below `next`, and fresh noise on top."""
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        down, up = ancestral(now, next, eta)
        x = ddim_step(p, down)
        if up > 0:
            x = x + s_noise * up * noise(x, now, next)
        yield Step(x, next, p.denoised, i)
