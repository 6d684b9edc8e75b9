"""What stands between encoder and decoder: one protocol, one table.

Beside the file of a new bottleneck, its name goes into `BOTTLENECKS` (bottlenecks/__init__.py) and its settings into
`AutoencoderConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from autoencoders.posterior_noise import random_rows


@dataclass(frozen=True)
class Encoding:
    """Latents (B, C, h, w) as a distribution: its mean, and its standard deviation or None where it has none."""

    mean: Tensor
    std: Tensor | None = None

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """mean + std * noise for a standard normal `noise` shaped like the mean; without noise the mean."""
        return self.mean if self.std is None or noise is None else self.mean + self.std * noise


@dataclass(frozen=True)
class BottleneckOutput:
    """What training needs of one batch: latents for the decoder, scalar losses and scalar metrics by name."""

    latents: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Bottleneck(Protocol):
    """Features of the encoder -> latents -> input of the decoder. An `nn.Module`; all its parameters are saved.

    State that only training needs (running sums, counters) goes into buffers: it is kept in checkpoints and left out of
    the saved model folder.
    """

    def feature_channels(self, latent_channels: int) -> int:
        """Channels that the encoder must give for so many channels of latents."""

    def encode(self, features: Tensor) -> Encoding:
        """The distribution of the latents: what diffusion learns."""

    def decode(self, latents: Tensor) -> Tensor:
        """The decoder's input for such latents; a quantiser rounds here."""

    def __call__(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        """The training pass; `generator` None takes the mean and draws nothing."""


@runtime_checkable
class HasCodes(Protocol):
    """A bottleneck whose latents are codes in the end: one map (B, h, w) of them a level, coarse to fine."""

    def to_indices(self, latents: Tensor) -> tuple[Tensor, ...]:
        """The code maps (B, h, w), int64, of latents; several codebooks stand side by side: (B, h, w * parts)."""

    def from_indices(self, codes: Sequence[Tensor]) -> Tensor:
        """The decoder's input for such maps."""


@runtime_checkable
class HasPrior(Protocol):
    """A bottleneck with a law of its latents of its own, from which a trained model draws."""

    def sample_prior(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """The decoder's input (B, *shape), shape (C, h, w), row i by generator i alone, a CPU generator."""


class Quantizer(nn.Module):
    """What quantisers share: latents are the features before quantisation, and `decode` takes their codes."""

    def feature_channels(self, latent_channels: int) -> int:
        return latent_channels

    def encode(self, features: Tensor) -> Encoding:
        return Encoding(features)

    def decode(self, latents: Tensor) -> Tensor:
        return self.lookup(self.indices(latents)).to(latents.dtype)

    def indices(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> the indices (B, h, w) of their codes; of several codebooks (B, parts, h, w)."""
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices as `indices` gives them -> codes (B, C, h, w)."""
        raise NotImplementedError

    def to_indices(self, latents: Tensor) -> tuple[Tensor, ...]:
        return (self.indices(latents),)

    def from_indices(self, codes: Sequence[Tensor]) -> Tensor:
        return self.lookup(codes[0])


def normal_rows(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise (B, *shape), row i from generator i."""
    return torch.stack([torch.randn(tuple(shape), generator=each) for each in generators])


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise shaped like `like`, drawn on the generator's own device."""
    return random_rows(torch.randn, like.shape, generator, dtype=like.dtype).to(like.device)


def full_precision(x: Tensor) -> Tensor:
    """float32 for the half precisions; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
