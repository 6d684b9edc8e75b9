"""Kin of the Frechet distance: without its bias, and along random directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluation.metrics.frechet import Gaussian, frechet_distance

_POINTS = 15
_SLICES = 1000


@dataclass(frozen=True, slots=True)
class Extrapolated:
    """The distance at infinitely many samples, and its standard error as that of the fitted line's end."""

    value: float
    standard_error: float


def extrapolated_frechet_distance(real: Tensor, fake: Tensor, *, seed: int = 0, points: int = _POINTS) -> Extrapolated:
    """FID_infinity (Chong and Forsyth 2020, arXiv:1911.07023, section 3): linear in 1 / N, followed to 0.

    The distance of fake features (M, D) from real ones (N, D), at `points` numbers of fake features from M / 5 to M,
    drawn at random without replacement; the reference stays whole. Needs 20 fake features or more.
    """
    if points < 3 or len(fake) < 20:
        raise ValueError(f"expected 20 fake features and 3 points or more, got {len(fake)} and {points}")
    reference, generator = Gaussian.fit(real), torch.Generator().manual_seed(seed)
    counts = [round(len(fake) * (0.2 + 0.8 * place / (points - 1))) for place in range(points)]
    found = []
    for count in counts:
        chosen = torch.randperm(len(fake), generator=generator)[:count].to(fake.device)
        found.append(frechet_distance(reference, Gaussian.fit(fake[chosen])))
    x = 1 / torch.tensor(counts, dtype=torch.float64)
    y = torch.tensor(found, dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], 1)
    inverse = torch.linalg.inv(design.T @ design)
    line = inverse @ design.T @ y
    residual = (y - design @ line).square().sum() / (points - 2)
    return Extrapolated(float(line[0]), float((residual * inverse[0, 0]).sqrt()))


def sliced_frechet_distance(real: Tensor, fake: Tensor, *, seed: int = 0, slices: int = _SLICES) -> float:
    """D times the mean over random directions of the one-dimensional distance (m1 - m2)^2 + (s1 - s2)^2.

    After the sliced Wasserstein distance (Bonneel et al. 2015), for Gaussians. It needs no full covariance, so few
    samples in many dimensions D do not bias it much; where the covariances are multiples of the identity it is the
    Frechet distance.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < 2:
        raise ValueError(f"expected features (N, D) and (M, D), got {tuple(real.shape)} and {tuple(fake.shape)}")
    return distance_of_slices(slices_of(real, slices, seed), slices_of(fake, slices, seed), real.shape[1])


def slices_of(features: Tensor, slices: int = _SLICES, seed: int = 0) -> Tensor:
    """Features (N, D) along random unit vectors, the same for the same seed: (N, slices), float64."""
    features = (features.cpu() if features.device.type == "mps" else features).double()
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features.shape[1], slices, generator=generator, dtype=torch.float64)
    return features @ (directions / directions.norm(dim=0)).to(features.device)


def distance_of_slices(a: Tensor, b: Tensor, dim: int) -> float:
    """The sliced distance of features of `dim` dimensions from their `slices_of`."""
    each = (a.mean(0) - b.mean(0)).square() + (a.std(0) - b.std(0)).square()
    return float(each.mean()) * dim
