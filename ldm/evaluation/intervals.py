"""Confidence intervals of figures that are functions of a set of samples: the bootstrap of half-samples.

Random halves of n samples, drawn without replacement, scatter around their own mean as the whole does around the truth:
drawing m of n has the variance factor (n - m) / m, here 1 (Shao and Wu 1989; Politis and Romano 1994). The ordinary
bootstrap would take samples twice, which then lie at distance 0 of each other: wrong for neighbours, biased for
covariances. Only the generated samples are drawn again; the reference is held.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEVEL = 0.95


def half_samples(count: int, replicates: int, *, seed: int = 0, device: torch.device | str = "cpu") -> list[Tensor]:
    """The numbers (count // 2,) of random halves of `count` samples; none for fewer than 8 samples."""
    if count < 8:
        return []
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(count, generator=generator)[: count // 2].to(device) for _ in range(replicates)]


def interval(value: float, replicates: Sequence[float], *, level: float = LEVEL) -> tuple[float, float] | None:
    """Around the figure of all samples, from those of the halves; None where there are fewer than two of them."""
    if len(replicates) < 2:
        return None
    scatter = torch.tensor(replicates, dtype=torch.float64)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(scatter - scatter.mean(), ends).tolist()
    return value + low, value + high
