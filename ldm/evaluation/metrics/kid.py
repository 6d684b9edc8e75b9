"""Kernel distance: the unbiased squared MMD under a cubic kernel (KID: Binkowski et al. 2018, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from autoencoders.importance import to_float64
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.metrics.base import SampleMetric, Samples
from ldm.evaluation.records import Estimate, MetricValue
from ldm.evaluation.registry import metrics

_WHOLE = 8192  # up to so many samples the kernel of all pairs is computed once (0.5 GB)


@metrics.register("kid")
class KernelInceptionDistance(SampleMetric):
    def measure(self, samples: Samples, config: EvaluationConfig) -> MetricValue:
        return self.value(samples, kernel_distance(samples.real_features, samples.fake, seed=config.seed))


def kernel_distance(
    a: Tensor, b: Tensor, *, seed: int = 0, num_subsets: int = 100, max_subset_size: int = 1000
) -> Estimate:
    """Mean over random subsets of features (N, D) and (M, D), as clean-fid computes it but with its own generator.

    The error is that of a delete-d jackknife (Shao and Wu 1989), for subsets of one sample overlap and their plain
    scatter would shrink with their number. Where the two distributions agree it errs on the large side.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 4:
        raise ValueError(f"expected features (N, D), (M, D) with N, M >= 4, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = (to_float64(x) for x in (a, b))
    generator = torch.Generator().manual_seed(seed)
    n = min(len(a), len(b))
    m = min(n, max_subset_size)

    kernel = _kernel(both := torch.cat([a, b]), both) if len(a) + len(b) <= _WHOLE else None

    def estimates_of(size: int) -> Tensor:
        """Estimates from `num_subsets` pairs of subsets without replacement."""
        estimates = []
        for _ in range(num_subsets):
            i, j = (torch.randperm(len(x), generator=generator)[:size].to(x.device) for x in (a, b))
            if kernel is None:
                chosen = _kernel(pair := torch.cat([a[i], b[j]]), pair)
            else:
                rows = torch.cat([i, j + len(a)])
                chosen = kernel[rows][:, rows]
            estimates.append(_mmd2(chosen))
        return torch.stack(estimates)

    if m == len(a) == len(b):  # every subset is the whole
        value = _mmd2(_kernel(both := torch.cat([a, b]), both) if kernel is None else kernel)
    else:
        estimates = estimates_of(m)
        value = estimates.mean()
    size = m
    if 2 * m > n:  # too few left out for a jackknife
        size = n // 2
        estimates = estimates_of(size)
    variance = estimates.var() * size / (n - size)
    return Estimate(float(value), float(variance.sqrt()))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(u, v) = (u . v / D + 1)^3 of all pairs, (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mmd2(kernel: Tensor) -> Tensor:
    """Unbiased estimate of MMD^2 (Gretton et al. 2012, eq. 3) from the kernel (2m, 2m) of m and m samples."""
    m = len(kernel) // 2
    k_xx, k_yy, k_xy = kernel[:m, :m], kernel[m:, m:], kernel[:m, m:]
    within = k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()
    return within / (m * (m - 1)) - 2 * k_xy.mean()
