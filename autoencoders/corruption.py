"""Damage to the input of a denoising autoencoder (Vincent et al. 2008, ICML; 2010, JMLR 11): the target stays clean."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autoencoders.config import CorruptionConfig
from autoencoders.distributed import random_rows, standard_normal


def patch_mask(images: Tensor, config: CorruptionConfig, generator: torch.Generator) -> Tensor:
    """Which pixels of images (B, C, H, W) are masked, the same in all channels: bool (B, 1, H, W).

    Patches are on a grid from the top left corner; those at the other borders are cut where they do not fit.
    """
    batch, _, height, width = images.shape
    side = config.mask_patch
    grid = (batch, 1, math.ceil(height / side), math.ceil(width / side))
    masked = random_rows(torch.rand, grid, generator) < config.mask_probability
    mask = masked.to(images.device).repeat_interleave(side, 2).repeat_interleave(side, 3)
    return mask[:, :, :height, :width]


def corrupt(images: Tensor, config: CorruptionConfig, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] with noise added and patches then set to 0, the middle grey.

    Noise is not clipped, so that it stays Gaussian. Without corruption nothing is drawn or copied.
    """
    if config.noise_std > 0:
        images = images + config.noise_std * standard_normal(images, generator)
    if config.mask_probability > 0:
        images = images.masked_fill(patch_mask(images, config, generator), 0.0)
    return images
