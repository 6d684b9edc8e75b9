"""Base classes of the modules between encoder and decoder.

A new bottleneck is one of these in a file of its own, and a class decorated with `bottleneck` that builds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn


def short_repr(record: Any) -> str:
    """The `repr` of a record: tensors by shape, `Encoding(mean=float32 (4, 3, 8, 8), std=None)`, the rest by length."""
    values = ((field.name, getattr(record, field.name)) for field in fields(record) if field.repr)
    return f"{type(record).__name__}({', '.join(f'{name}={_short(value)}' for name, value in values)})"


def _short(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    is_long = isinstance(value, tuple | list | Mapping) and len(value) > 4
    text = "" if is_long else repr(value)
    if text and len(text) <= 100:
        return text
    return f"<{type(value).__name__}{f' of {len(value)}' if hasattr(value, '__len__') else ''}>"


@dataclass(frozen=True)
class Encoding:
    """Latents (B, C, h, w) as a distribution: its mean, and its standard deviation or None where it has none."""

    mean: Tensor
    std: Tensor | None = None

    __repr__ = short_repr

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """mean + std * noise for a standard normal `noise` shaped like the mean; without noise the mean."""
        return self.mean if self.std is None or noise is None else self.mean + self.std * noise


@dataclass(frozen=True)
class BottleneckOutput:
    """The training pass of one batch: latents for the decoder, scalar losses and scalar metrics by name."""

    latents: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    __repr__ = short_repr


class Bottleneck(nn.Module):
    """Features of the encoder -> latents -> input of the decoder; as it is, nothing in between.

    All its parameters are saved. State that only training needs (running sums, counters) goes into buffers: it is kept
    in checkpoints and left out of the saved model folder. The methods that raise are those of a bottleneck with
    indices, a prior or a density; its registered class says which it has.
    """

    def encode(self, features: Tensor) -> Encoding:
        """The distribution of the latents: what diffusion learns."""
        return Encoding(features)

    def decode(self, latents: Tensor) -> Tensor:
        """The decoder's input for such latents; a quantiser rounds here."""
        return latents

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        """The training pass; `generator` None takes the mean and draws nothing."""
        return BottleneckOutput(features)

    def set_step(self, step: int) -> None:
        """Set the training step that comes next, counted from 0."""

    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """Set the codebook to vectors of features (B, C, h, w), drawn by `generator`."""
        raise NotImplementedError

    def to_indices(self, latents: Tensor) -> tuple[Tensor, ...]:
        """The indices (B, h, w) of latents, int64, one map a level, coarse to fine.

        The indices of several codebooks are side by side: (B, h, w * codebooks).
        """
        raise NotImplementedError

    def from_indices(self, indices: Sequence[Tensor]) -> Tensor:
        """The decoder's input for such maps."""
        raise NotImplementedError

    def sample_prior(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """The decoder's input for latents (B, *shape) drawn from the prior, row i by the CPU generator i alone."""
        raise NotImplementedError

    def weighted_sample(self, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The decoder's input for z drawn from q(z | x), and log p(z) - log q(z | x) in nats, (B,) in float64."""
        raise NotImplementedError


class Quantizer(Bottleneck):
    """Base class of quantisers: the latents are the features before quantisation, and `decode` quantises them."""

    def decode(self, latents: Tensor) -> Tensor:
        return self.lookup(self.indices(latents)).to(latents.dtype)

    def indices(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> their indices (B, h, w); of several codebooks (B, codebooks, h, w)."""
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices as `indices` gives them -> vectors (B, C, h, w)."""
        raise NotImplementedError

    def to_indices(self, latents: Tensor) -> tuple[Tensor, ...]:
        return (self.indices(latents),)

    def from_indices(self, indices: Sequence[Tensor]) -> Tensor:
        return self.lookup(indices[0])


def full_precision(x: Tensor) -> Tensor:
    """float32 for the half precisions; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
