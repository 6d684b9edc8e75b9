"""What is measured of an autoencoder while it trains: the rate in bits a pixel."""

from __future__ import annotations

import math

from torch import Tensor

from autoencoders.bottlenecks import BottleneckOutput


def bits_per_pixel(output: BottleneckOutput, pixels: int) -> dict[str, Tensor]:
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
