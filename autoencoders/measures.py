"""The output of a training pass, and its rate in bits per pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from autoencoders.bottlenecks.base import BottleneckOutput, short_repr


@dataclass(frozen=True)
class AutoencoderOutput:
    """The output of a training pass: the reconstruction (B, C, H, W), and the bottleneck's scalar losses and metrics.

    Where there is a rate (see `bits_per_pixel`), it is one of the metrics.
    Losses are in their own units: "kl" in nats an image; "codebook", "commitment" and "entropy" with the
    bottleneck's own weights already on them. `likelihood` (B, 2 C, H, W) is the output of a decoder of
    "logit_laplace": locations and log-scales.
    """

    reconstruction: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    likelihood: Tensor | None = None

    __repr__ = short_repr


def bits_per_pixel(output: BottleneckOutput, pixels: int) -> dict[str, Tensor]:
    """{"bits_per_pixel": the rate of the latents of an image of so many pixels}; {} for a bottleneck without a rate.

    From the KL if there is one; else from the entropy of the indices of this batch, as if all positions were
    independent.
    """
    if "kl" in output.losses:
        return {"bits_per_pixel": output.losses["kl"].detach() / (math.log(2) * pixels)}
    bits = output.metrics.get("bits_per_place")  # of several codebooks
    if bits is None and "perplexity" in output.metrics:
        bits = output.metrics["perplexity"].log2()
    if bits is not None:
        positions = output.latents.shape[2] * output.latents.shape[3]
        return {"bits_per_pixel": bits * (positions / pixels)}
    return {}
