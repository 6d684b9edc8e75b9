"""The importance-weighted bound on log p(x), the density of images under an autoencoder with a prior.

Burda et al. 2016, arXiv:1509.00519.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from autoencoders.autoencoder import Autoencoder
from autoencoders.bottlenecks.gaussian import Gaussian
from autoencoders.distributed import standard_normal
from autoencoders.losses import LossConfig, logit_laplace


class Likelihood(Protocol):
    """p(x | z), from the decoder's output."""

    @property
    def kind(self) -> str: ...
    @property
    def scale(self) -> float | None: ...

    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        """log p(x | z) in nats, (B,) in float64, of images (B, C, H, W) under the decoder's outputs."""


@dataclass(frozen=True)
class PixelLikelihood:
    """p(x | z): each number of the image by itself around the decoder's output.

    `laplace`: density exp(-|x - y| / scale) / (2 scale); `gaussian`: normal with standard deviation `scale`. The unit
    of `scale` is that of images in [-1, 1].
    """

    kind: Literal["laplace", "gaussian"]
    scale: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"likelihood scale: expected a number above 0, got {self.scale}")

    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        """log p(x | z) in nats, (B,) in float64, of images (B, C, H, W) around outputs of that shape."""
        error = to_float64(images) - to_float64(outputs)
        if self.kind == "laplace":
            terms = -error.abs() / self.scale - math.log(2 * self.scale)
        else:
            terms = -0.5 * (error / self.scale).square() - math.log(self.scale * math.sqrt(2 * math.pi))
        return terms.flatten(1).sum(1)


@dataclass(frozen=True)
class LogitLaplaceLikelihood:
    """p(x | z) whose location and scale the decoder gives for each number of the image; see `logit_laplace`."""

    kind: Literal["logit_laplace"] = "logit_laplace"
    scale: None = None

    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        """As `PixelLikelihood`, for images (B, C, H, W) in [-1, 1] and outputs (B, 2 C, H, W)."""
        location, log_scale = logit_laplace.bounded(to_float64(outputs))
        terms = logit_laplace.log_density(logit_laplace.to_unit(to_float64(images)), location, log_scale)
        slope = (1 - 2 * logit_laplace.EPS) / 2  # of to_unit, as the density is one of x
        return (terms + math.log(slope)).flatten(1).sum(1)


def implied_likelihood(loss: LossConfig, scale: float | None = None) -> Likelihood:
    """The likelihood of which the loss is the evidence bound (see `LossConfig`); `scale` replaces the implied one.

    `ValueError` for a reconstruction term that is not of a likelihood, for a KL weight of 0, and for a scale where
    the decoder gives its own.
    """
    if loss.reconstruction == "logit_laplace":
        if scale is not None:
            raise ValueError("reconstruction logit_laplace: the decoder gives a scale for every pixel; give none")
        return LogitLaplaceLikelihood()
    kinds: dict[str, Literal["laplace", "gaussian"]] = {"l1": "laplace", "l2": "gaussian"}
    if loss.reconstruction not in kinds:
        raise ValueError(f"reconstruction {loss.reconstruction}: has no likelihood; l1, l2 and logit_laplace have")
    if scale is None:
        if loss.kl_weight <= 0:
            raise ValueError("a KL weight of 0 implies no likelihood; give a likelihood scale")
        scale = loss.kl_weight if loss.reconstruction == "l1" else math.sqrt(loss.kl_weight / 2)
    return PixelLikelihood(kinds[loss.reconstruction], scale)


def has_density(model: Autoencoder) -> bool:
    """Whether log p(x) can be bounded: the prior and the posterior have densities."""
    return model.config.options.has_density


def standard_posterior(model: Autoencoder, images: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation (B, C, h, w) of q(z | x), in units in which the prior is N(0, 1).

    None for a model whose posterior is no diagonal Gaussian under a standard normal prior. The units are not those of
    `Autoencoder.encode`, whose latents have zero mean and unit variance over the data.
    """
    if not isinstance(model.quantize, Gaussian):
        return None
    mean, logvar = model.quantize.posterior(model._features(images))
    center, spread = (value[:, None, None].to(mean) for value in (model.prior_mean, model.prior_std))
    return (mean - center) / spread, torch.exp(0.5 * logvar) / spread


@torch.no_grad()
def log_weights(
    model: Autoencoder, image: Tensor, likelihood: Likelihood, count: int, generator: Generator, *, chunk: int = 64
) -> Tensor:
    """log p(x | z_k) + log p(z_k) - log q(z_k | x) in nats for `count` draws z_k: (count,) in float64 on the CPU.

    `image` is (C, H, W). At most `chunk` draws are decoded at a time. `ValueError` for a model without densities.
    """
    if not has_density(model):
        raise ValueError(f"bottleneck {model.config.bottleneck} has no density of its latents, so no log p(x)")
    weights = []
    features = model._features(image[None])
    for start in range(0, count, chunk):
        rows = features.expand(min(chunk, count - start), -1, -1, -1)
        z, ratio = _weighted_sample(model, rows, generator)
        outputs = model._decoded(z)
        weights.append(likelihood.log_prob(image.expand(len(outputs), -1, -1, -1), outputs).cpu() + ratio.cpu())
    return torch.cat(weights)


def importance_bound(weights: Tensor, samples: int) -> Tensor:
    """The bound L_K of Burda et al., section 3, for K = `samples`: log weights (..., S) -> (...).

    Every K of the S draws give a bound, and these are averaged: S is a multiple of K. L_1 is the evidence bound; L_K
    grows with K in expectation, and tends to log p(x) (theorem 1).
    """
    if weights.shape[-1] % samples:
        raise ValueError(f"samples: expected a divisor of the {weights.shape[-1]} draws, got {samples}")
    groups = weights.unflatten(-1, (-1, samples))
    return (groups.logsumexp(-1) - math.log(samples)).mean(-1)


def _weighted_sample(model: Autoencoder, features: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    bottleneck = model.quantize
    if not isinstance(bottleneck, Gaussian):
        return bottleneck.weighted_sample(features, generator)
    mean, logvar = bottleneck.posterior(features)
    noise = standard_normal(mean, generator)
    z = mean + torch.exp(0.5 * logvar) * noise
    center, spread = (to_float64(value)[:, None, None] for value in (model.prior_mean, model.prior_std))
    standard = (to_float64(z) - center) / spread
    ratio = 0.5 * (to_float64(noise).square() - standard.square() + to_float64(logvar)) - spread.log()
    return z, ratio.flatten(1).sum(1)


def to_float64(x: Tensor) -> Tensor:
    """x in float64, on the CPU where its device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()
