"""What is measured of an autoencoder while it trains, and after: the rate, and the statistics of its latents."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autoencoders.bottlenecks import BottleneckOutput

if TYPE_CHECKING:
    from autoencoders.autoencoder import Autoencoder


def rate(output: BottleneckOutput, pixels: int) -> dict[str, Tensor]:
    """{"bits_per_pixel": what the latents of an image of so many pixels cost}; {} of a bottleneck without a rate.

    From the KL if there is one; else from the entropy of the codes of this batch, as if all places were independent.
    """
    if "kl" in output.losses:
        return {"bits_per_pixel": output.losses["kl"].detach() / (math.log(2) * pixels)}
    bits = output.metrics.get("bits_per_place")  # of several codes, or levels
    if bits is None and "perplexity" in output.metrics:
        bits = output.metrics["perplexity"].log2()
    if bits is not None:
        places = output.latents.shape[2] * output.latents.shape[3]
        return {"bits_per_pixel": bits * (places / pixels)}
    return {}


@torch.no_grad()
def measure_latents(autoencoder: Autoencoder, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the raw latents of batches of images, in float64: what `calibrate` wants.

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
