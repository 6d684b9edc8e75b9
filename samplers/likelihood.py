"""How probable a model finds data: the variational bound, and the exact density of the probability flow.

All in nats a sample; `bits_per_dim` converts. The prior at the noisiest level is N(0, alpha^2 + sigma^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.level import Denoise, Level, Levels, Noise, check_levels, exp_neg_h, pairs, short_repr


@dataclass(frozen=True, slots=True)
class Bound:
    """The terms of the negative evidence lower bound, (B,) each, in nats."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    __repr__ = short_repr

    @property
    def total(self) -> Tensor:
        return self.prior + self.diffusion + self.reconstruction


def bits_per_dim(nats: Tensor, dimensions: int, *, bins: int | None = None) -> Tensor:
    """Bits a dimension of -log p; with `bins`, of a density on [-1, 1] read as the probability of one of the bins."""
    bits = nats / (dimensions * math.log(2))
    return bits if bins is None else bits + math.log2(bins / 2)


def variational_bound(denoise: Denoise, x0: Tensor, levels: Levels, *, noise: Noise, bins: int | None = None) -> Bound:
    """An unbiased estimate of the bound of the ancestral sampler over these falling levels, that end above sigma = 0.

    A step costs (SNR(s) - SNR(t)) / 2 |x0 - x0_hat|^2 (Kingma et al. 2021, arXiv:2107.00630, eq. 13; DDPM's L_t with
    the small variance), or the divergence to the learned variance, where there is one. The last level is decoded by
    N(x0_hat, sigma^2 / alpha^2): as a density, or with `bins` as the probability of the one of `bins` equal values from
    -1 to 1 that x0 is (Ho et al. 2020, eq. 13).
    """
    levels = check_levels(levels)
    if levels[-1].sigma == 0:
        raise ValueError('the bound needs levels that end above sigma = 0: make_levels(..., final="first")')
    if bins is not None and bins < 2:
        raise ValueError(f"bins must be at least 2; got {bins}")
    start = levels[0]
    var = start.alpha**2 + start.sigma**2
    prior = 0.5 * ((start.alpha * x0) ** 2 / var + start.sigma**2 / var - 1 - math.log(start.sigma**2 / var))
    diffusion = torch.zeros_like(_sum(x0))
    for _, now, next in pairs(levels):
        x = now.alpha * x0 + now.sigma * noise(x0, now, next)
        gain = math.exp(2 * next.log_snr) - (math.exp(2 * now.log_snr) if now.alpha > 0 else 0.0)
        p = denoise(x, now)
        squared = (x0 - p.denoised) ** 2
        if p.variance_fraction is None or next == now:
            diffusion = diffusion + 0.5 * gain * _sum(squared)
        else:
            keep = exp_neg_h(now, next) ** 2
            small, large = next.sigma**2 * (1 - keep), now.sigma**2 * (1 - keep)
            log_excess = p.variance_fraction * (math.log(large) - math.log(small))
            diffusion = diffusion + _sum(step_divergence(gain * squared, log_excess))
    last = levels[-1]
    x = last.alpha * x0 + last.sigma * noise(x0, last, last)
    reconstruction = decoder_nll(x0, denoise(x, last).denoised, last.noise_ratio, bins)
    return Bound(_sum(prior), diffusion, _sum(reconstruction))


def step_divergence(squared: Tensor, log_excess: Tensor) -> Tensor:
    """KL(N(m, v) || N(m', v')) elementwise, of `squared` = (m - m')^2 / v and `log_excess` = log(v' / v).

    Of a step of the sampler: from the posterior of x0, whose variance is the small one, to the model's, with the
    variance that it learned (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 4 and 15).
    """
    return 0.5 * (torch.expm1(-log_excess) + log_excess + squared * torch.exp(-log_excess))


def flow_log_likelihood(
    denoise: Denoise, x0: Tensor, levels: Levels, *, probes: Sequence[Tensor] | None = None, seed: int = 0
) -> Tensor:
    """log p(x0), (B,), by the probability flow (Song et al. 2021, arXiv:2011.13456, eq. 39) over rising levels.

    Heun's method. In y = x / alpha and r = sigma / alpha, dy / dr = eps, and log p gains the integral of its
    divergence (over log r, where it is smooth), which Hutchinson's estimator finds as v . J v for each of `probes` (by
    default one of random signs). x0 is taken as y at the first level, so that should have little noise. `denoise` must
    let autograd see from x to x0.
    """
    levels = check_levels(levels, rising=True)
    for end in (levels[0], levels[-1]):
        if end.sigma == 0 or end.alpha == 0:
            raise ValueError("the flow's likelihood needs levels with alpha > 0 and sigma > 0 at both ends")
    if probes is None:
        generator = torch.Generator("cpu").manual_seed(seed)
        signs = torch.randint(0, 2, x0.shape, generator=generator).to(device=x0.device, dtype=x0.dtype)
        probes = [2 * signs - 1]
    y, gained = x0, torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    eps, divergence = _flow(denoise, y, levels[0], probes)
    for _, now, next in pairs(levels):
        step = next.noise_ratio - now.noise_ratio
        guess, _ = _flow(denoise, y + step * eps, next, probes)
        y = y + 0.5 * step * (eps + guess)
        eps, after = _flow(denoise, y, next, probes)
        gained, divergence = gained + 0.5 * (now.log_snr - next.log_snr) * (divergence + after), after
    end = levels[-1]
    var = 1 + end.noise_ratio**2  # of y
    return gained - 0.5 * _sum(y**2 / var + math.log(2 * math.pi * var))


def _flow(denoise: Denoise, y: Tensor, level: Level, probes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """eps = (y - x0) / r, and r times its divergence in y: D - sum v . (dx0 / dy) v."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        x0 = denoise(level.alpha * y, level).denoised
        traces = [_sum(torch.autograd.grad(x0, y, v, retain_graph=True)[0] * v) for v in probes]
    return (y - x0).detach() / level.noise_ratio, y[0].numel() - torch.stack(traces).mean(0)


def decoder_nll(x0: Tensor, mean: Tensor, std: float | Tensor, bins: int | None) -> Tensor:
    """-log p(x0 | mean, std), elementwise: of a density, or with `bins` of one of as many equal values from -1 to 1."""
    if bins is None:
        scale = std * math.sqrt(2 * math.pi)
        return 0.5 * ((x0 - mean) / std) ** 2 + (scale.log() if isinstance(scale, Tensor) else math.log(scale))
    half = 1 / (bins - 1)
    above = torch.where(x0 > 1 - half, math.inf, (x0 + half - mean) / std)
    below = torch.where(x0 < -1 + half, -math.inf, (x0 - half - mean) / std)
    # of the two tails take the one that does not cancel
    flip = mean < x0
    low, high = torch.where(flip, -above, below), torch.where(flip, -below, above)
    return -(torch.special.ndtr(high) - torch.special.ndtr(low)).clamp(min=1e-12).log()


def _sum(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).sum(1)
