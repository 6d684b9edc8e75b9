"""Denoising diffusion implicit models (Song et al. 2021, arXiv:2010.02502), forwards and backwards."""

from __future__ import annotations

from collections.abc import Iterator

from samplers.level import (
    Denoise,
    Level,
    Levels,
    Noise,
    Step,
    Tensor,
    check_levels,
    ddim_step,
    exp_neg_h,
    lincomb,
    no_noise,
    pairs,
)
from samplers.registry import sampler


@sampler("ddim", order=1, draws="eta", source="Song et al. 2021, arXiv:2010.02502, eq. 12")
def ddim(denoise: Denoise, x: Tensor, levels: Levels, *, noise: Noise = no_noise, eta: float = 0.0) -> Iterator[Step]:
    """eta = 0 is the probability-flow ODE; eta = 1 has the noise of DDPM with the small variance (eq. 16)."""
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        std = eta * next.sigma * (1 - exp_neg_h(now, next) ** 2) ** 0.5 if eta > 0 else 0.0  # eq. 16
        if std > next.sigma:
            raise ValueError(f"eta = {eta} needs more noise than level {i + 1} has; eta <= 1 always works")
        x = ddim_step(p, Level(next.t, next.alpha, (next.sigma**2 - std**2) ** 0.5) if std > 0 else next)
        if std > 0:
            x = x + std * noise(x, now, next)
        yield Step(x, next, p.denoised, i)


def ddim_inversion(denoise: Denoise, x: Tensor, levels: Levels, *, iterations: int = 1) -> Iterator[Step]:
    """From a sample back to its noise, through rising levels, such that `ddim` over the same ones leads back to it.

    Each step seeks the x' from which DDIM steps to x, by fixed-point iteration (Pan et al. 2023, arXiv:2309.04907, eq.
    8): one iteration is the usual inversion, that assumes eps(x') = eps(x); a few more leave nothing but rounding.
    """
    levels = check_levels(levels, rising=True)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be a whole number of at least 1; got {iterations!r}")
    return _invert(denoise, x, levels, iterations)


def _invert(denoise: Denoise, x: Tensor, levels: Levels, iterations: int) -> Iterator[Step]:
    for i, now, next in pairs(levels):
        guess, a = x, next.alpha / now.alpha
        for _ in range(iterations):
            p = denoise(guess, next)
            guess = lincomb(a, x, (next.sigma - a * now.sigma, p.eps))
        x = guess
        yield Step(x, next, p.denoised, i)
