"""Statistics of a set of latents: use of the codes, active units, the aggregate posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ACTIVE = 0.01  # Burda et al. 2016, section 5: a unit is active where its posterior mean varies by more
_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the kernel's width; Tolstikhin et al. 2018 take the same


@dataclass(frozen=True, slots=True)
class CodeStatistics:
    """Of one codebook of `size` codes over a set of images."""

    size: int
    used: int
    surprise: Tensor  # (N,): bits that the codes of each image take together, under the frequencies of the whole set
    positions: int  # codes an image

    @property
    def entropy(self) -> float:
        """Bits a code, from 0 to log2(size)."""
        return float(self.surprise.mean()) / self.positions

    @property
    def perplexity(self) -> float:
        """2^entropy: from 1 (one code in use) to `size` (all alike)."""
        return 2.0**self.entropy

    @property
    def perplexity_error(self) -> float:
        """Its standard error, by the delta method."""
        return self.perplexity * math.log(2) * standard_error(self.surprise) / self.positions


def code_statistics(codes: Tensor, size: int) -> CodeStatistics:
    """From the codes (N, positions) of N images, all positions under one distribution.

    The entropy is that of the frequencies, too low by (used - 1) / (2 N positions ln 2) bits (Miller 1955). The
    influence function of entropy is -log2 p(code), so the scatter over images of its sum gives the error, whether or
    not the codes of one image depend on each other.
    """
    flat = codes.long().flatten()
    counts = torch.bincount(flat, minlength=size).double()
    p = counts / counts.sum()
    bits = -p.clamp(min=torch.finfo(p.dtype).tiny).log2()
    return CodeStatistics(size, int((counts > 0).sum()), bits[flat].view(len(codes), -1).sum(1), codes[0].numel())


def standard_error(of_images: Tensor) -> float:
    """Of the mean of (N,) independent numbers."""
    return float(of_images.double().std()) / math.sqrt(len(of_images))


class PosteriorMoments:
    """Sums over images of diagonal Gaussian posteriors N(mean, std^2), in units in which the prior is N(0, 1)."""

    def __init__(self) -> None:
        self.count = 0
        self._offset = self._sum = self._square = self._variance = torch.zeros(())

    def add(self, mean: Tensor, std: Tensor) -> None:
        """Posteriors (B, C, h, w) of B images."""
        mean, variance = (x.detach().cpu().double().flatten(1) for x in (mean, std.square()))  # (B, D)
        if not self.count:
            self._offset = mean[0]  # sums of what is left do not lose digits
            self._sum, self._square, self._variance = (torch.zeros_like(mean[0]) for _ in range(3))
        self.count += len(mean)
        self._sum = self._sum + (mean - self._offset).sum(0)
        self._square = self._square + (mean - self._offset).square().sum(0)
        self._variance = self._variance + variance.sum(0)

    def variance_of_means(self) -> Tensor:
        """Var_x(E[z | x]) of each number of the latents, (D,), unbiased."""
        left = self._sum / self.count
        return ((self._square - self.count * left.square()) / (self.count - 1)).clamp(min=0)

    def active_units(self) -> int:
        """Numbers of the latents with Var_x(E[z | x]) > 0.01 (Burda et al. 2016, arXiv:1509.00519, section 5)."""
        return int((self.variance_of_means() > ACTIVE).sum())

    def divergence(self) -> Tensor:
        """KL of the Gaussian with the aggregate posterior's mean and variance from N(0, 1), in nats, (D,).

        The aggregate posterior is q(z) = E_x q(z | x) (Makhzani et al. 2016, arXiv:1511.05644; Hoffman and Johnson
        2016). Its variance is Var_x(E[z | x]) + E_x Var[z | x]; the Gaussian's KL is the least with
        these moments, so this is a lower bound on each number's own KL. N images raise it by about 1 / N.
        """
        mean = self._offset + self._sum / self.count
        variance = self.variance_of_means() + self._variance / self.count
        tiny = torch.finfo(torch.float64).tiny
        return 0.5 * (mean.square() + variance - 1 - variance.clamp(min=tiny).log())


def prior_discrepancy(latents: Tensor, draws: Tensor) -> tuple[float, float]:
    """Unbiased squared MMD between latents (N, D) and as many draws of a N(0, I) prior, and its standard error.

    Gretton et al. 2012, lemma 6 (equation 4), with the inverse multiquadratic kernel sum_s c / (c + |x - y|^2),
    c = 2 D s, of Tolstikhin et al. 2018 (arXiv:1711.01558, section 4). Near 0, also below it, where the two agree.
    The error is from Hoeffding's variance of a U-statistic (Serfling 1980, section 5.2.1, lemma A).
    """
    if latents.shape != draws.shape or latents.ndim != 2 or len(latents) < 4:
        got = f"{tuple(latents.shape)} and {tuple(draws.shape)}"
        raise ValueError(f"expected latents (N, D) and as many draws, N >= 4, got {got}")
    x, y = latents.double(), draws.double()
    n = len(x)
    h = _kernel(x, x) + _kernel(y, y)
    cross = _kernel(x, y)
    h = (h - cross - cross.T).fill_diagonal_(0.0)  # (N, N): the U-statistic's own kernel
    value = h.sum() / (n * (n - 1))
    of_all = (h - value).fill_diagonal_(0.0).square().sum() / (n * (n - 1))  # Var h(z_i, z_j)
    rows = h.sum(1) / (n - 1)
    of_rows = rows.var() - of_all / (n - 1)  # Var E[h | z_i], 0 where the two agree; less a row's own scatter
    variance = torch.maximum(4 * (n - 2) * of_rows + 2 * of_all, of_all / 2) / (n * (n - 1))
    return float(value), float(variance.sqrt())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    square = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)  # (N, M)
    total = torch.zeros_like(square)
    for scale in _SCALES:
        c = 2 * x.shape[1] * scale
        total += c / (c + square)
    return total
