"""The midpoint methods of k-diffusion ("DPM2"): second order, with the midpoint in log sigma (arXiv:2206.00364)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from samplers.level import Denoise, Level, Noise, Prediction, Step, Tensor, ddim_step, first_order_only, no_noise, pairs
from samplers.registry import sampler
from samplers.solvers.euler import ancestral


def _midpoint(denoise: Denoise, p: Prediction, next: Level) -> Tensor:
    """From p to `next` along the eps half-way in log-SNR."""
    assert p.level.path is not None
    middle = p.level.path.level_of((p.level.log_snr + next.log_snr) / 2)
    return ddim_step(p, next, denoise(ddim_step(p, middle), middle).eps)


@sampler("dpm_2", order=2, evaluations=2, between=True, source="Karras et al. 2022, arXiv:2206.00364 as in k-diffusion")
def dpm_2(denoise: Denoise, x: Tensor, levels: Sequence[Level], *, noise: Noise = no_noise) -> Iterator[Step]:
    """The explicit midpoint rule on dy / dr = eps."""
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        x = ddim_step(p, next) if first_order_only(now, next) else _midpoint(denoise, p, next)
        yield Step(x, next, p.denoised, i)


@sampler("dpm_2_ancestral", order=1, evaluations=2, draws="eta", between=True, source="dpm_2, noise of euler_ancestral")
def dpm_2_ancestral(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    *,
    noise: Noise = no_noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """The midpoint rule to a level below `next`, and fresh noise on top."""
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        down, up = ancestral(now, next, eta)
        x = ddim_step(p, down) if down.sigma == 0 or first_order_only(now, next) else _midpoint(denoise, p, down)
        if up > 0:
            x = x + s_noise * up * noise(x, now, next)
        yield Step(x, next, p.denoised, i)
