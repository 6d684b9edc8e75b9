"""Adams-Bashforth methods on dy / dr = eps, in y = x / alpha and r = sigma / alpha: plms, lms and deis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from samplers.level import Denoise, Levels, Noise, Step, Tensor, ddim_step, first_order_only, lincomb, no_noise, pairs
from samplers.registry import sampler


@sampler("plms", order=2, source="Liu et al. 2022, arXiv:2202.09778, eq. 12 (PNDM), Heun start as in Stable Diffusion")
def plms(denoise: Denoise, x: Tensor, levels: Levels, *, noise: Noise = no_noise) -> Iterator[Step]:
    """Adams-Bashforth's weights for equal steps, whatever the steps: of order 2 unless sigma / alpha falls in equal
    steps. The first step evaluates twice.
    """
    weights = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
    past: list[Tensor] = []  # newest first
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        past = [p.eps, *past[:3]]
        w = weights[len(past)]
        x = ddim_step(p, next, lincomb(w[0], past[0], *zip(w[1:], past[1:], strict=True)))
        if i == 0 and not first_order_only(now, next):
            x = ddim_step(p, next, (p.eps + denoise(x, next).eps) / 2)
        yield Step(x, next, p.denoised, i)


@sampler("lms", order=2, full_order=4, source="k-diffusion's linear multistep method, 2022")
def lms(
    denoise: Denoise, x: Tensor, levels: Levels, *, noise: Noise = no_noise, order: Literal[1, 2, 3, 4] = 4
) -> Iterator[Step]:
    """The integral over r of the polynomial in r through the last `order` eps.

    It starts with a step of order 1 and one of order 2, whose errors leave order 2 in all.
    """
    past: list[tuple[float, Tensor]] = []  # (r, eps), newest first
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        if now.alpha == 0:  # pure noise has no finite r: a first-order step, and nothing to remember
            x = ddim_step(p, next)
        else:
            past = [(now.noise_ratio, p.eps), *past[: order - 1]]
            step = next.noise_ratio - now.noise_ratio
            nodes = [r - now.noise_ratio for r, _ in past]
            c = lagrange_weights(nodes, [step ** (k + 1) / (k + 1) for k in range(len(past))])
            terms = ((next.alpha * a, eps) for a, (_, eps) in zip(c, past, strict=True))
            x = lincomb(next.alpha / now.alpha, p.x_base, *terms)
        yield Step(x, next, p.denoised, i)


@sampler("deis", order=2, full_order=3, source="Zhang & Chen 2023, arXiv:2204.13902, eq. 15 in log rho (tAB-DEIS)")
def deis(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    noise: Noise = no_noise,
    order: Literal[1, 2, 3] = 3,
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """The integral over r of the polynomial in log r through the last `order` eps (fewer at the end of few steps).

    Its first step is of order 1, which leaves order 2 in all.
    """
    past: list[tuple[float, Tensor]] = []  # (log r, eps), newest first
    steps = len(levels) - 1
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        if now.alpha == 0 or next.sigma == 0:
            x = ddim_step(p, next)
        else:
            past = [(-now.log_snr, p.eps), *past[: order - 1]]
            used = past[: steps - i] if lower_order_final and steps < 15 else past
            nodes = [u - used[0][0] for u, _ in used]
            c = lagrange_weights(nodes, _exponential_moments(now.log_snr - next.log_snr, len(used)))
            a = next.alpha / now.alpha
            x = lincomb(a, p.x_base, *((a * now.sigma * w, eps) for w, (_, eps) in zip(c, used, strict=True)))
        yield Step(x, next, p.denoised, i)


def lagrange_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The integral of each Lagrange polynomial on `nodes`, given those of 1, u, u^2, ..."""
    weights = []
    for j, node in enumerate(nodes):
        coefficients, scale = [1.0], 1.0
        for k, other in enumerate(nodes):
            if k != j:
                coefficients = [a - other * b for a, b in zip([0.0, *coefficients], [*coefficients, 0.0], strict=True)]
                scale *= node - other
        weights.append(sum(c * m for c, m in zip(coefficients, moments, strict=True)) / scale)
    return weights


def _exponential_moments(end: float, count: int) -> list[float]:
    """The integrals of u^k e^u from 0 to `end`, by parts: M_k = end^k e^end - k M_(k-1)."""
    moments = [math.expm1(end)]
    for k in range(1, count):
        moments.append(end**k * math.exp(end) - k * moments[-1])
    return moments
