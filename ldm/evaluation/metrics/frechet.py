"""The Frechet distance between two Gaussians fitted to features (FID: Heusel et al. 2017, eq. 6).

FD = |mu_1 - mu_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2).

With any factors C_i = F_i^T F_i, the non-zero eigenvalues of C_1 C_2 are the squared singular values of F_1 F_2^T, so
the last trace is the nuclear norm of F_1 F_2^T. This needs no square root of a non-symmetric matrix, is exact for
rank-deficient covariances, and with fewer samples than dimensions the centred features themselves are the factor.
Everything is float64: in float32 the distance is wrong in the third digit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoencoders.importance import to_float64
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.metrics.base import SampleMetric, Samples
from ldm.evaluation.records import Estimate, MetricValue
from ldm.evaluation.registry import metrics

_TOLERANCE = 2e-10  # accepted rounding error, relative to tr C_1 + tr C_2
_POINTS = 15
_SLICES = 1000


@metrics.register("fid")
class FrechetDistance(SampleMetric):
    def measure(self, samples: Samples, config: EvaluationConfig) -> MetricValue:
        def distance(fake: Tensor) -> float:
            return frechet_distance(samples.reference, Gaussian.fit(fake))

        halves = [distance(samples.fake[half]) for half in samples.halves(config)]
        return self.value(samples, distance(samples.fake), halves)


@metrics.register("sliced_fid")
class SlicedFrechetDistance(SampleMetric):
    def measure(self, samples: Samples, config: EvaluationConfig) -> MetricValue:
        real, fake = slices_of(samples.real_features, seed=config.seed), slices_of(samples.fake, seed=config.seed)
        dim = samples.real_features.shape[1]
        halves = [distance_of_slices(real, fake[half.to(fake.device)], dim) for half in samples.halves(config)]
        return self.value(samples, distance_of_slices(real, fake, dim), halves)


@metrics.register("fid_infinity")
class ExtrapolatedFrechetDistance(SampleMetric):
    least_images = 20

    def measure(self, samples: Samples, config: EvaluationConfig) -> MetricValue:
        return self.value(samples, extrapolated_frechet_distance(samples.real_features, samples.fake, seed=config.seed))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Frechet (2-Wasserstein) distance, as FID is quoted."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of different extractors: {len(a.mean)} and {len(b.mean)} dimensions")
    spread = a.factor.square().sum() + b.factor.square().sum()  # tr C_1 + tr C_2
    overlap = _nuclear_norm(a.factor @ b.factor.T, float(spread))
    return float((a.mean - b.mean).square().sum() + spread - 2 * overlap)


def _nuclear_norm(matrix: Tensor, scale: float) -> Tensor:
    """Sum of singular values: from the smaller Gram matrix (faster), or by SVD where squaring would lose digits."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    squares = torch.linalg.eigvalsh(matrix @ matrix.T).clamp_min(0)
    # An eigenvalue s^2 is known to about eps * s_max^2, hence its root s to eps * s_max^2 / s, at 0 to s_max sqrt(eps).
    # Those errors have either sign and mostly cancel in a sum, but not at 0, where the clipped ones all add up.
    noise = torch.finfo(torch.float64).eps * squares.max().clamp_min(1e-300)
    errors = noise / torch.maximum(squares, noise).sqrt()
    lost = squares < 1e3 * noise
    error = errors[lost].sum() + errors[~lost].norm()
    if error > _TOLERANCE * scale:
        return torch.linalg.svdvals(matrix).sum()
    return squares.sqrt().sum()


def extrapolated_frechet_distance(real: Tensor, fake: Tensor, *, seed: int = 0, points: int = _POINTS) -> Estimate:
    """FID_infinity (Chong and Forsyth 2020, arXiv:1911.07023, section 3): linear in 1 / N, followed to 0.

    The distance of fake features (M, D) from real ones (N, D), at `points` numbers of fake features from M / 5 to M,
    drawn at random without replacement; the reference stays whole. Needs 20 fake features or more.
    The standard error is that of the fitted line's end.
    """
    if points < 3 or len(fake) < 20:
        raise ValueError(f"expected 20 fake features and 3 points or more, got {len(fake)} and {points}")
    reference, generator = Gaussian.fit(real), torch.Generator().manual_seed(seed)
    counts = [round(len(fake) * (0.2 + 0.8 * k / (points - 1))) for k in range(points)]
    distances = []
    for count in counts:
        chosen = torch.randperm(len(fake), generator=generator)[:count].to(fake.device)
        distances.append(frechet_distance(reference, Gaussian.fit(fake[chosen])))
    x = 1 / torch.tensor(counts, dtype=torch.float64)
    y = torch.tensor(distances, dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], 1)
    inverse = torch.linalg.inv(design.T @ design)
    line = inverse @ design.T @ y
    residual = (y - design @ line).square().sum() / (points - 2)
    return Estimate(float(line[0]), float((residual * inverse[0, 0]).sqrt()))


def slices_of(features: Tensor, slices: int = _SLICES, seed: int = 0) -> Tensor:
    """Features (N, D) along random unit vectors, the same for the same seed: (N, slices), float64."""
    features = to_float64(features)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features.shape[1], slices, generator=generator, dtype=torch.float64)
    return features @ (directions / directions.norm(dim=0)).to(features.device)


def distance_of_slices(a: Tensor, b: Tensor, dim: int) -> float:
    """D times the mean over random directions of the one-dimensional distance (m1 - m2)^2 + (s1 - s2)^2.

    Of the `slices_of` features of D = `dim` dimensions. After the sliced Wasserstein distance (Bonneel et al. 2015),
    for Gaussians. It needs no full covariance, so few samples in many dimensions do not bias it much; where the
    covariances are multiples of the identity it is the Frechet distance.
    """
    squares = (a.mean(0) - b.mean(0)).square() + (a.std(0) - b.std(0)).square()
    return float(squares.mean()) * dim
