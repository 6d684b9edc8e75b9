"""The training loss of an autoencoder: reconstruction plus the terms of the bottleneck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from autoencoders.bottlenecks.base import short_repr
from autoencoders.losses import logit_laplace
from autoencoders.losses.config import LossConfig
from autoencoders.measures import AutoencoderOutput


@dataclass(frozen=True)
class LossOutput:
    """The scalar to minimise, and its unweighted terms by name, without gradient, for the log.

    `reconstruction` is the term of the total that compares images, with its gradient.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    reconstruction: Tensor

    __repr__ = short_repr


def autoencoder_loss(
    config: LossConfig, images: Tensor, output: AutoencoderOutput, step: int | None = None
) -> LossOutput:
    """The loss of one batch: images (B, C, H, W) in [-1, 1] against the output of `Autoencoder.forward`.

    `step` is the training step, counted from 0; without it every weight is as at the end of its ramp.
    """
    if output.reconstruction.shape != images.shape:
        raise ValueError(f"reconstruction {tuple(output.reconstruction.shape)} of images {tuple(images.shape)}")
    weights = {
        "kl": config.kl_weight_at(step) / images[0].numel(),
        "free_bits": config.kl_weight_at(step) / images[0].numel(),
        "codebook": config.codebook_weight,
        "commitment": config.codebook_weight,
        "entropy": config.codebook_weight,
    }
    reconstruction = reconstruction_error(config, images, output)
    total = reconstruction
    for name, value in output.losses.items():
        total = total + weights.get(name, 1.0) * value
    terms = {"reconstruction": reconstruction, **output.losses}
    return LossOutput(total, {name: value.detach() for name, value in terms.items()}, reconstruction)


def reconstruction_error(config: LossConfig, images: Tensor, output: AutoencoderOutput) -> Tensor:
    """The error or negative log-likelihood of these settings, a mean over all numbers of the images."""
    if config.reconstruction == "logit_laplace":
        if output.likelihood is None:
            raise ValueError("reconstruction logit_laplace needs an autoencoder with decoder_output logit_laplace")
        return logit_laplace.negative_log_likelihood(images, output.likelihood.to(images.dtype))
    reconstruction = output.reconstruction.to(images.dtype)
    if config.reconstruction == "huber":  # e^2 / 2 up to delta, delta * (|e| - delta / 2) beyond (Huber 1964)
        return F.huber_loss(reconstruction, images, delta=config.huber_delta)
    return (F.l1_loss if config.reconstruction == "l1" else F.mse_loss)(reconstruction, images)
