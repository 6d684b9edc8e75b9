"""Multistep DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), for the flow (2M, 3M) and for the SDE (2M SDE, 3M SDE).

x0 is taken as a polynomial in lambda = log(alpha / sigma) through its last values, and the linear rest integrated
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from samplers.level import Denoise, Levels, Noise, Step, Tensor, exp_neg_h, lincomb, no_noise, pairs
from samplers.registry import sampler


@sampler("dpmpp_2m", order=2, source="Lu et al. 2022, arXiv:2211.01095, Algorithm 2")
def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    noise: Noise = no_noise,
    form: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """The step to sigma = 0, and the last of fewer than 15 if `lower_order_final`, are of first order.

    `form`: how the slope is weighed, by (1 - e^-h) / 2 as published or by its integral.
    """
    return _multistep(denoise, x, levels, noise, _Options(2, form, lower_order_final))


@sampler("dpmpp_2m_sde", order=1, draws="eta", source="Lu et al. 2022, arXiv:2211.01095, eq. 18 with k-diffusion's eta")
def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    noise: Noise = no_noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    form: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """eta = 1 is the reverse SDE, eta = 0 is dpmpp_2m."""
    return _multistep(denoise, x, levels, noise, _Options(2, form, lower_order_final, eta, s_noise))


@sampler("dpmpp_3m", order=2, source="Lu et al. 2022, arXiv:2211.01095, multistep order 3 as in the authors' code")
def dpmpp_3m(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    noise: Noise = no_noise,
    corrected: bool = False,
    form: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """As published, the second derivative lacks its factor 2, so the order is 2; `corrected` is of order 3.

    Below some 32 steps the published form is a little more accurate. `form` concerns the second step, that has only two
    values of x0.
    """
    return _multistep(denoise, x, levels, noise, _Options(3, form, lower_order_final, corrected=corrected))


@sampler("dpmpp_3m_sde", order=1, draws="eta", source="k-diffusion 2023, after Lu et al. 2022, arXiv:2211.01095")
def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    noise: Noise = no_noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    corrected: bool = False,
    form: Literal["midpoint", "heun"] = "heun",
    lower_order_final: bool = False,
) -> Iterator[Step]:
    """As dpmpp_3m, for the SDE."""
    return _multistep(denoise, x, levels, noise, _Options(3, form, lower_order_final, eta, s_noise, corrected))


@dataclass(frozen=True)
class _Options:
    order: int
    form: str
    lower_order_final: bool
    eta: float = 0.0
    s_noise: float = 0.0
    corrected: bool = False


def _multistep(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise, options: _Options) -> Iterator[Step]:
    order, eta, factor = options.order, options.eta, 2.0 if options.corrected else 1.0
    steps = len(levels) - 1
    past: list[tuple[float, Tensor]] = []  # lambda and x0 before this step, newest first
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        x0, lam = p.denoised, now.log_snr
        e = exp_neg_h(now, next)  # e^-h
        remaining = e**eta  # share of the noise of x
        a, b = next.sigma / now.sigma * remaining, next.alpha * (1 - e * remaining)
        values = min(order, 1 + len(past), steps - i if options.lower_order_final and steps < 15 else order)
        if values == 1 or not 0 < e < 1:
            x = lincomb(a, p.x_base, (b, x0))
        else:
            h, s = next.log_snr - lam, (1 + eta) * (next.log_snr - lam)
            r = h / (lam - past[0][0])
            integral = values == 3 or options.form == "heun"
            c = next.alpha * (math.expm1(-s) / s + 1) if integral else b / 2  # weighs the slope
            terms = [(b + c * r, x0), (-c * r, past[0][1])]
            if values == 3:
                # the slope is D1 + D2 / r, with D1 = r (x0 - x0_1) and D2 = q (D1 - r_2 (x0_1 - x0_2))
                r_2, q = h / (past[0][0] - past[1][0]), h / (lam - past[1][0])
                g = q * (c / r - factor * (c / s - next.alpha / 2))  # weighs D2 / q
                terms = [(b + (c + g) * r, x0), (-(c + g) * r - g * r_2, past[0][1]), (g * r_2, past[1][1])]
            x = lincomb(a, p.x_base, *terms)
        if remaining < 1 and next.sigma > 0:
            x = x + options.s_noise * next.sigma * (1 - remaining**2) ** 0.5 * noise(x, now, next)
        if now.alpha > 0:
            past = [(lam, x0), *past[: order - 2]]
        yield Step(x, next, x0, i)
