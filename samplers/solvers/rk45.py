"""An adaptive Runge-Kutta method for the probability flow (Song et al. 2021, arXiv:2011.13456, section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from samplers.level import Denoise, Levels, Noise, NoisePath, Prediction, Step, Tensor, ddim_step, no_noise, pairs
from samplers.registry import sampler

# Dormand & Prince 1980: nodes, stages, and fifth minus fourth order. The last stage is the new point.
_C = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@sampler(
    "rk45", order=5, evaluations=6, between=True, source="Dormand & Prince 1980; Song et al. 2021, arXiv:2011.13456"
)
def rk45(
    denoise: Denoise, x: Tensor, levels: Levels, *, noise: Noise = no_noise, rtol: float = 1e-4, atol: float = 1e-4
) -> Iterator[Step]:
    """Solves the flow to a tolerance: as many evaluations as that takes, and the levels are only where it reports.

    The error, in units of atol + rtol |x / alpha|, is that of the worst sample of the batch, so here alone a sample
    depends on its batch, within the tolerance; and here alone a number is read back from the device after each step.
    Steps that begin at pure noise or end at sigma = 0 are DDIM's.
    """
    if not rtol + atol > 0:
        raise ValueError("rk45 needs a positive tolerance; rtol and atol are both 0")
    size = math.inf  # of the next step in lambda
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        if now.alpha == 0 or next.sigma == 0 or next == now:
            x = ddim_step(p, next)
        else:
            assert now.path is not None
            y, size = _integrate(denoise, p, now.path, next.log_snr, size, rtol, atol)
            x = next.alpha * y
        yield Step(x, next, p.denoised, i)


def _slope(p: Prediction) -> Tensor:
    """dy / dlambda = -r eps for y = x / alpha, r = e^-lambda."""
    return -p.level.noise_ratio * p.eps


def _integrate(
    denoise: Denoise, p: Prediction, path: NoisePath, end: float, size: float, rtol: float, atol: float
) -> tuple[Tensor, float]:
    t, y, first = p.level.log_snr, p.x_base / p.level.alpha, _slope(p)
    while t < end:
        h = min(size, end - t)
        if t + h <= t:
            raise FloatingPointError(
                f"rk45: the step shrank to 0 at log-SNR {t:.6g}; the denoiser is not smooth enough"
            )
        k = [first]
        for c, a in zip(_C[1:], _A[1:], strict=True):
            point = y + h * sum((w * s for w, s in zip(a, k, strict=True) if w), start=0.0 * first)
            level = path.level_of(t + c * h)
            k.append(_slope(denoise(level.alpha * point, level)))
        error = h * sum((w * s for w, s in zip(_E, k, strict=True) if w), start=0.0 * first)
        scale = atol + rtol * y.abs().maximum(point.abs())
        worst = (error / scale).reshape(len(y), -1).square().mean(1).sqrt().max().item()
        if not math.isfinite(worst):
            raise FloatingPointError(f"rk45: the denoiser is not finite near log-SNR {t:.6g}")
        if worst <= 1:
            t, y, first = (end if h == end - t else t + h), point, k[-1]
        size = h * min(5.0, max(0.2, 0.9 * max(worst, 1e-10) ** -0.2))
    return y, size
