"""The logit-Laplace likelihood of pixels (Ramesh et al. 2021, DALL-E, arXiv:2102.12092, appendix A.3).

The decoder's output is a location and a log-scale for each number of the image: (B, 2 C, H, W).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 0.1  # pixels lie in [EPS, 1 - EPS], away from where the logit is infinite
_LOG_SCALES = (-5.0, 3.0)  # a third of an 8-bit level, and flatter than flat: a constant image costs no infinity


def to_unit(images: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> [EPS, 1 - EPS], inside the support (0, 1) of the density (appendix A.3)."""
    return (1 - 2 * EPS) * (images + 1) / 2 + EPS


def from_unit(pixels: Tensor) -> Tensor:
    """`to_unit` undone, clipped to [-1, 1]."""
    return (2 * (pixels - EPS) / (1 - 2 * EPS) - 1).clamp(-1, 1)


def log_density(pixels: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """The log-density of each pixel x in (0, 1): that of sigmoid(u), u Laplace-distributed.

    log f = -log(2 b x (1 - x)) - |logit x - mu| / b, with mu the location and b = exp(log_scale) (appendix A.3,
    equation 2). It integrates to 1 over (0, 1).
    """
    log_jacobian = torch.log(pixels) + torch.log1p(-pixels)  # log x (1 - x)
    distance = (torch.logit(pixels) - location).abs()
    return -math.log(2) - log_scale - log_jacobian - distance * torch.exp(-log_scale)


def negative_log_likelihood(images: Tensor, parameters: Tensor) -> Tensor:
    """Mean negative log-density of images (B, C, H, W) in [-1, 1] under locations and log-scales (B, 2 C, H, W)."""
    location, log_scale = bounded(parameters)
    return -log_density(to_unit(images), location, log_scale).mean()


def median(parameters: Tensor) -> Tensor:
    """The median of the likelihood, an image (B, C, H, W) in [-1, 1]."""
    return from_unit(torch.sigmoid(parameters.chunk(2, dim=1)[0]))


def bounded(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The locations and the log-scales, (B, C, H, W) each, the latter within their limits."""
    location, log_scale = parameters.chunk(2, dim=1)
    return location, log_scale.clamp(*_LOG_SCALES)
