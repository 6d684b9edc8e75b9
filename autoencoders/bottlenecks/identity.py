"""No bottleneck: the latents are the features themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoencoders.bottlenecks.base import BottleneckOutput, Encoding


class Identity(nn.Module):
    """Passes everything through unchanged."""

    def feature_channels(self, latent_channels: int) -> int:
        return latent_channels

    def encode(self, features: Tensor) -> Encoding:
        return Encoding(features)

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        return BottleneckOutput(features)
