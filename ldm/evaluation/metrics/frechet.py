"""The Frechet distance between two Gaussians fitted to features (FID: Heusel et al. 2017, eq. 6).

FD = |mu_1 - mu_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2).

With any factors C_i = F_i^T F_i, the non-zero eigenvalues of C_1 C_2 are the squared singular values of F_1 F_2^T, so
the last trace is the nuclear norm of F_1 F_2^T. This needs no square root of a non-symmetric matrix, is exact for
rank-deficient covariances, and with fewer samples than dimensions the centred features themselves are the factor.
Everything is float64: in float32 the distance is wrong in the third digit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 8192  # rows turned into float64 at a time
_TOLERANCE = 2e-10  # accepted rounding error, relative to tr C_1 + tr C_2


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean (D,) and a factor F (k, D) of the covariance F^T F, float64, fitted to `count` samples."""

    mean: Tensor
    factor: Tensor
    count: int

    @classmethod
    def fit(cls, features: Tensor) -> Gaussian:
        """Mean and unbiased covariance of features (N, D), N >= 2."""
        n, d = _checked(features).shape
        mean = torch.stack([chunk.sum(0) for chunk in _chunks(features)]).sum(0) / n
        if n <= d:
            return cls(mean, (_float64(features) - mean) / (n - 1) ** 0.5, n)
        covariance = torch.zeros(d, d, dtype=torch.float64, device=mean.device)
        for chunk in _chunks(features):
            centred = chunk - mean
            covariance.addmm_(centred.T, centred)
        return cls(mean, _factor(covariance / (n - 1)), n)

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor, count: int) -> Gaussian:
        """From mean (D,) and covariance (D, D), such as published reference statistics."""
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"expected (D,) and (D, D), got {tuple(mean.shape)} and {tuple(covariance.shape)}")
        return cls(_float64(mean), _factor(_float64(covariance)), count)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def to(self, device: torch.device | str) -> Gaussian:
        """The same on another device."""
        return Gaussian(self.mean.to(device), self.factor.to(device), self.count)


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


def _factor(covariance: Tensor) -> Tensor:
    """F with F^T F = covariance: Cholesky's, or by eigenvalues where the matrix is (nearly) rank-deficient."""
    factor, failed = torch.linalg.cholesky_ex(covariance, upper=True)
    pivots = factor.diagonal()
    if not failed and pivots.min() > 1e-7 * pivots.max():
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values.max() * 1e-15
    return values[kept].sqrt()[:, None] * vectors[:, kept].T


def _chunks(features: Tensor) -> Iterable[Tensor]:
    return map(_float64, features.split(_CHUNK))


def _float64(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()  # Apple GPUs have no float64


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected features (N, D) with N >= 2, got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("features hold values that are not finite")
    return features
