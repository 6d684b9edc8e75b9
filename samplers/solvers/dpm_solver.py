"""DPM-Solver (Lu et al. 2022a, arXiv:2206.00927) and DPM-Solver++ (2022b, arXiv:2211.01095), single-step.

Both integrate the linear part of the flow exactly in lambda = log(alpha / sigma); DPM-Solver takes eps as smooth in
lambda, DPM-Solver++ takes x0 so. In k-diffusion's solvers (2S ancestral, SDE) a step may end below `next`, and noise
leads back to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from samplers.level import Denoise, Level, Levels, Noise, Prediction, Step, Tensor, ddim_step, lincomb, no_noise, pairs
from samplers.registry import sampler
from samplers.solvers.euler import ancestral


def _level(now: Level, next: Level, r: float) -> Level:
    """The level at the fraction r of the step in lambda."""
    assert now.path is not None
    return now.path.level_of((1 - r) * now.log_snr + r * next.log_snr)


def _x0_step(p: Prediction, next: Level, x0: Tensor) -> Tensor:
    """sigma_t / sigma_s x + alpha_t (1 - e^-h) x0: the step of first order that holds x0 fixed."""
    shrink = next.sigma / p.level.sigma
    return lincomb(shrink, p.x_base, (next.alpha - p.level.alpha * shrink, x0))


@sampler(
    "dpm_solver", order=3, evaluations=3, between=True, source="Lu et al. 2022, arXiv:2206.00927, Algorithms 1, 4 and 5"
)
def dpm_solver(
    denoise: Denoise, x: Tensor, levels: Levels, *, noise: Noise = no_noise, order: Literal[1, 2, 3] = 3
) -> Iterator[Step]:
    """`order` evaluations a step, at r1 = 1/2, or at r1 = 1/3 and r2 = 2/3. Order 2 is k-diffusion's dpm_2."""
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        if order == 1 or next.sigma == 0 or now.alpha == 0 or next == now:
            x = ddim_step(p, next)
        elif order == 2:
            s = _level(now, next, 1 / 2)
            x = ddim_step(p, next, denoise(ddim_step(p, s), s).eps)
        else:
            h = next.log_snr - now.log_snr
            s1, s2 = _level(now, next, 1 / 3), _level(now, next, 2 / 3)
            D1 = denoise(ddim_step(p, s1), s1).eps - p.eps
            D2 = denoise(ddim_step(p, s2) - 2 * s2.sigma * _phi(2 / 3 * h) * D1, s2).eps - p.eps
            x = ddim_step(p, next) - 3 / 2 * next.sigma * _phi(h) * D2
        yield Step(x, next, p.denoised, i)


def _phi(h: float) -> float:
    return math.expm1(h) / h - 1


@sampler("dpmpp_2s", order=2, evaluations=2, between=True, source="Lu et al. 2022, arXiv:2211.01095, Algorithm 1")
def dpmpp_2s(denoise: Denoise, x: Tensor, levels: Levels, *, noise: Noise = no_noise) -> Iterator[Step]:
    """Holds the x0 half-way in lambda fixed (r1 = 1/2)."""
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        x = _two_stages(denoise, p, next)
        yield Step(x, next, p.denoised, i)


def _two_stages(denoise: Denoise, p: Prediction, next: Level) -> Tensor:
    if next.sigma == 0 or p.level.alpha == 0:
        return ddim_step(p, next)
    s = _level(p.level, next, 1 / 2)
    return _x0_step(p, next, denoise(ddim_step(p, s), s).denoised)


@sampler(
    "dpmpp_2s_ancestral", order=1, evaluations=2, draws="eta", between=True, source="k-diffusion's ancestral dpmpp_2s"
)
def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, levels: Levels, *, noise: Noise = no_noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """dpmpp_2s to a level below `next`, and fresh noise on top."""
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        down, up = ancestral(now, next, eta)
        x = _two_stages(denoise, p, down)
        if up > 0:
            x = x + s_noise * up * noise(x, now, next)
        yield Step(x, next, p.denoised, i)


@sampler(
    "dpmpp_sde",
    order=1,
    evaluations=2,
    draws="eta",
    between=True,
    source="k-diffusion 2022, after arXiv:2211.01095, section 6",
)
def dpmpp_sde(
    denoise: Denoise, x: Tensor, levels: Levels, *, noise: Noise = no_noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Two stochastic stages (r = 1/2); the noise of both should come from one path, as BrownianNoise's does."""
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        x0 = p.denoised
        if next.sigma > 0 and now.alpha > 0 and next != now:
            s = _level(now, next, 1 / 2)
            down, up = ancestral(now, s, eta)
            y = _x0_step(p, down, x0)
            if up > 0:
                y = y + s_noise * up * noise(x, now, s)
            x0 = denoise(y, s).denoised
        down, up = ancestral(now, next, eta)
        x = _x0_step(p, down, x0)
        if up > 0:
            x = x + s_noise * up * noise(x, now, next)
        yield Step(x, next, p.denoised, i)
