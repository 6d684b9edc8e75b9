"""Damage to the input of a denoising autoencoder (Vincent et al. 2008, ICML; 2010, JMLR 11): the target stays clean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from autoencoders.bottlenecks.base import standard_normal
from autoencoders.checks import check_int, check_number
from autoencoders.posterior_noise import random_rows


@dataclass(frozen=True)
class CorruptionConfig:
    """What is done to a training image before it is encoded; by default nothing."""

    mask_probability: float = 0.0
    """Denoising: probability that a patch of the input is masked."""
    mask_patch: int = 4
    """Denoising: side in pixels of the patches that are masked."""
    noise_std: float = 0.0
    """Denoising: standard deviation of the Gaussian noise on the input, whose range is [-1, 1]."""

    def __post_init__(self) -> None:
        check_number("mask_probability", self.mask_probability, 0, 1)
        check_int("mask_patch", self.mask_patch, 1, 2**16)
        check_number("noise_std", self.noise_std, 0, 1e3)

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        return self.mask_probability > 0 or self.noise_std > 0


def patch_mask(images: Tensor, config: CorruptionConfig, generator: torch.Generator) -> Tensor:
    """Which pixels of images (B, C, H, W) are masked, the same in all channels: bool (B, 1, H, W).

    Patches stand on a grid from the top left corner; those at the other borders are cut where they do not fit.
    """
    batch, _, height, width = images.shape
    side = config.mask_patch
    cells = (batch, 1, math.ceil(height / side), math.ceil(width / side))
    drawn = random_rows(torch.rand, cells, generator) < config.mask_probability
    mask = drawn.to(images.device).repeat_interleave(side, 2).repeat_interleave(side, 3)
    return mask[:, :, :height, :width]


def corrupt(images: Tensor, config: CorruptionConfig, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] with noise added and patches then set to 0, the middle grey.

    Noise is not clipped, so that it stays Gaussian. Without corruption the very tensor comes back and nothing is drawn.
    """
    if config.noise_std > 0:
        images = images + config.noise_std * standard_normal(images, generator)
    if config.mask_probability > 0:
        images = images.masked_fill(patch_mask(images, config, generator), 0.0)
    return images
