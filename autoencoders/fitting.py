"""Statistics of data: the calibration of latents, and the principal components of the linear autoencoder."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from autoencoders.autoencoder import Autoencoder
from autoencoders.coders.linear import LinearDecoder, LinearEncoder


@torch.no_grad()
def measure_latents(autoencoder: Autoencoder, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the raw latents of batches of images, in float64, for `calibrate`.

    The variance is that of sampled latents: the variance of the posterior mean plus the mean of the posterior variance.
    """
    count = 0
    total, square = (torch.zeros(autoencoder.latent_channels, dtype=torch.float64) for _ in range(2))
    for images in batches:
        latents = autoencoder.encode(images)
        mean = latents.mean.double()  # (B, C, h, w)
        second = mean.square() if latents.std is None else mean.square() + latents.std.double().square()
        total += mean.sum((0, 2, 3)).cpu()
        square += second.sum((0, 2, 3)).cpu()
        count += mean.numel() // mean.shape[1]
    if count == 0:
        raise ValueError("measuring latents: expected at least one batch of images, got none")
    # undo the calibration that encode applied
    old_mean, old_std = (t.detach().cpu().double() for t in (autoencoder.latents_mean, autoencoder.latents_std))
    mean = total / count
    variance = (square / count - mean.square()).clamp(min=0)
    return mean * old_std + old_mean, variance.sqrt() * old_std


class Covariance:
    """Mean and covariance of patches, batch by batch, in float64."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._shift = torch.zeros(dimension, dtype=torch.float64)  # near the mean, so that no digits are lost
        self._sum = torch.zeros(dimension, dtype=torch.float64)
        self._square = torch.zeros(dimension, dimension, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Add vectors (N, d)."""
        vectors = vectors.double().cpu()
        if self.count == 0:
            self._shift = vectors.mean(0)
        centred = vectors - self._shift
        self.count += len(vectors)
        self._sum += centred.sum(0)
        self._square.addmm_(centred.T, centred)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of all vectors, divided by their number. `ValueError` without any."""
        if self.count == 0:
            raise ValueError("principal components: expected at least one batch of images, got none")
        offset = self._sum / self.count
        return self._shift + offset, self._square / self.count - torch.outer(offset, offset)


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) -> their patches (B h w, C p p), row by row of each image."""
    patches = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, h, p, w, p)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)


@torch.no_grad()
def fit_linear(autoencoder: Autoencoder, batches: Iterable[Tensor]) -> Tensor:
    """Set a linear autoencoder to the principal components of batches of images (B, C, H, W) in [-1, 1].

    Returns all eigenvalues (C p p,) of the covariance, descending, float64: the mean squared error of a patch, summed
    over its numbers, is the sum of those from `latent_channels` on. `ValueError` for another kind of autoencoder, for
    images whose sides are no multiple of the patch, and for fewer patches than determine the components.
    """
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    if not isinstance(encoder, LinearEncoder) or not isinstance(decoder, LinearDecoder):
        raise ValueError(f"bottleneck: expected linear, got {autoencoder.config.bottleneck}")
    k, shape = len(encoder.weight), encoder.weight.shape[1:]
    covariance = Covariance(shape.numel())
    for images in batches:
        if images.ndim != 4 or images.shape[1] != shape[0] or images.shape[2] % shape[1] or images.shape[3] % shape[2]:
            expected = f"(B, {shape[0]}, H, W) with H and W divisible by {shape[1]}"
            raise ValueError(f"images: expected {expected}, got {tuple(images.shape)}")
        covariance.add(patches_of(images, shape[1]))
    mean, matrix = covariance.moments()
    if covariance.count <= k:
        raise ValueError(f"latent_channels {k}: expected fewer than there are patches, {covariance.count}")
    values, vectors = torch.linalg.eigh(matrix)  # ascending
    values, components = values.flip(0).clamp(min=0), vectors.flip(1).T[:k]  # (d,), (k, d)
    if not values[k - 1] > values[0] * 1e-12:
        rank = int((values > values[0] * 1e-12).sum())
        raise ValueError(f"latent_channels {k}: these images vary in {rank} directions only; take at most so many")
    # the sign of an eigenvector is free: the largest number is made positive, so that every machine agrees
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    encoder.weight.copy_(components.view(k, *shape))
    encoder.bias.copy_(-(components @ mean))
    decoder.weight.copy_(components.view(k, *shape))
    decoder.mean.copy_(mean.view(shape))
    return values
