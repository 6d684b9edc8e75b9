"""A Gaussian fitted to features, in float64: a mean and a factor of the covariance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from autoencoders.importance import to_float64
from samplers.level import short_repr

_CHUNK = 8192  # rows turned into float64 at a time


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean (D,) and a factor F (k, D) of the covariance F^T F, float64, fitted to `count` samples."""

    mean: Tensor
    factor: Tensor
    count: int

    __repr__ = short_repr

    @classmethod
    def fit(cls, features: Tensor) -> Gaussian:
        """Mean and unbiased covariance of features (N, D), N >= 2."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"expected features (N, D) with N >= 2, got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("features hold values that are not finite")
        n, d = features.shape
        mean = torch.stack([chunk.sum(0) for chunk in _chunks(features)]).sum(0) / n
        if n <= d:
            return cls(mean, (to_float64(features) - mean) / (n - 1) ** 0.5, n)
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
        return cls(to_float64(mean), _factor(to_float64(covariance)), count)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def to(self, device: torch.device | str) -> Gaussian:
        """The same on another device."""
        return Gaussian(self.mean.to(device), self.factor.to(device), self.count)


def _factor(covariance: Tensor) -> Tensor:
    """F with F^T F = covariance: Cholesky's, or by eigenvalues where the matrix is (nearly) rank-deficient."""
    factor, failed = torch.linalg.cholesky_ex(covariance, upper=True)
    pivots = factor.diagonal()
    if not failed and pivots.min() > 1e-7 * pivots.max():
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    positive = values > values.max() * 1e-15
    return values[positive].sqrt()[:, None] * vectors[:, positive].T


def _chunks(features: Tensor) -> Iterable[Tensor]:
    return map(to_float64, features.split(_CHUNK))
