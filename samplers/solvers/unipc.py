"""UniPC (Zhao et al. 2023, arXiv:2302.04867): a predictor and a corrector of any order that share their evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from samplers.level import Denoise, Level, Levels, Noise, Step, Tensor, ddim_step, lincomb, no_noise, pairs
from samplers.registry import sampler


@sampler(
    "unipc",
    order=2,
    full_order=3,
    source="Zhao et al. 2023, arXiv:2302.04867, Algorithms 5 and 6 (multistep, data prediction)",
)
def unipc(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    noise: Noise = no_noise,
    order: Literal[1, 2, 3] = 2,
    form: Literal["bh1", "bh2"] = "bh2",
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """Each evaluation, at the predicted x, first corrects that x and then serves the next prediction.

    Steps are yielded as predicted. The corrector lifts the order by one; the last steps are of lower order if
    `lower_order_final`, the very last one of order 1, which leaves order 2 in all. Without it the start, of order 1 and
    corrected, leaves order 3 with `order` 2 as with 3.
    """
    past: list[tuple[Level, Tensor]] = []  # levels and x0, newest first
    start: tuple[Tensor, int] | None = None  # the x from where the last step went, and its order
    steps = len(levels) - 1
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        x0, x_base = p.denoised, p.x_base
        if start is not None:
            rates, diffs = _differences(past, now, start[1])
            c = _coefficients([*rates, 1.0], now.log_snr - past[0][0].log_snr, form)
            if len(c) == 1:
                c = [0.5]
            x_base = _update(start[0], past[0], now, c, [*diffs, x0 - past[0][1]], form)
        past = [(now, x0), *past[:2]]
        used = min(order, len(past), steps - i if lower_order_final else order)
        if now.alpha == 0:
            x, past, start = ddim_step(p, next), [], None
        elif next.sigma == 0 or next == now:
            x = next.alpha * x0 if next.sigma == 0 else x_base
        else:
            rates, diffs = _differences(past, next, used)
            c = [0.5] if used == 2 else _coefficients(rates, next.log_snr - now.log_snr, form)
            x, start = _update(x_base, past[0], next, c, diffs, form), (x_base, used)
        yield Step(x, next, x0, i)


def _differences(past: Sequence[tuple[Level, Tensor]], target: Level, order: int) -> tuple[list[float], list[Tensor]]:
    """r_k = (lambda_k - lambda_0) / h and D_k / r_k = (x0_k - x0_0) / r_k for k = 1 .. order - 1."""
    (level, x0), h = past[0], target.log_snr - past[0][0].log_snr
    rates = [(other.log_snr - level.log_snr) / h for other, _ in past[1:order]]
    return rates, [(value - x0) / r for (_, value), r in zip(past[1:order], rates, strict=True)]


def _coefficients(rates: Sequence[float], h: float, form: str) -> list[float]:
    """a in R a = b, where R_ij = r_j^i and b_i = i! h phi_(i+1)(-h) / B(h) (eq. 5 to 7)."""
    B = -h if form == "bh1" else math.expm1(-h)
    phi, factorial, b = math.expm1(-h) / -h - 1, 1, []
    for i in range(1, len(rates) + 1):
        b.append(phi * factorial / B)
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    return _solve([[r**i for r in rates] for i in range(len(rates))], b)


def _solve(A: list[list[float]], b: list[float]) -> list[float]:
    """Gauss's elimination with pivots, for a few unknowns."""
    rows = [[*row, value] for row, value in zip(A, b, strict=True)]
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(len(rows)):
            if k != i:
                f = rows[k][i] / rows[i][i]
                rows[k] = [v - f * w for v, w in zip(rows[k], rows[i], strict=True)]
    return [row[-1] / row[i] for i, row in enumerate(rows)]


def _update(
    x: Tensor, start: tuple[Level, Tensor], next: Level, weights: Sequence[float], diffs: Sequence[Tensor], form: str
) -> Tensor:
    """sigma_t / sigma_s x - alpha_t (e^-h - 1) x0 - alpha_t B(h) sum_k a_k D_k / r_k (eq. 3 and 8)."""
    now, x0 = start
    h = next.log_snr - now.log_snr
    e = math.expm1(-h)
    B = -h if form == "bh1" else e
    terms = ((-next.alpha * B * weight, diff) for weight, diff in zip(weights, diffs, strict=True))
    return lincomb(next.sigma / now.sigma, x, (-next.alpha * e, x0), *terms)
