"""Finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505): each channel is rounded to a few levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autoencoders.bottlenecks.base import BottleneckOutput, Encoding, Quantizer, full_precision
from autoencoders.bottlenecks.vector_quantizer import code_use, straight_through


class FiniteScalar(Quantizer):
    """Features (B, C, h, w) -> latents (B, C, h, w) in [-1, 1], C the number of channels with levels of their own.

    The latents are bounded but not yet rounded; `decode` rounds them. A channel of L levels takes the values
    k / floor(L / 2) for the whole numbers k from -floor(L / 2) to ceil(L / 2) - 1. Nothing but the reconstruction is
    trained: no codebook, no commitment.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...], *, eps: float = 1e-3) -> None:
        super().__init__()
        self.num_codes, self.eps = math.prod(levels), eps
        strides = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels)[:, None, None], persistent=False)  # (C, 1, 1)
        self.register_buffer("basis", torch.tensor(strides)[:, None, None], persistent=False)

    def encode(self, features: Tensor) -> Encoding:
        """Section 3.1 of the paper; for even L the bounds lie half a level lower, so that each end has one too.

        The shift, which keeps the zero of the features at 0, is atanh: the tan of the paper's listing misses it.
        (Two levels have no such zero: it would lie where tanh is flat.)
        """
        half = (self.levels - 1) * (1 - self.eps) / 2  # of the range, a little less: its ends must not round outwards
        offset = 0.5 * (self.levels % 2 == 0)
        bounded = torch.tanh(full_precision(features) + torch.atanh(offset / half)) * half - offset
        return Encoding(bounded / self._half_width)

    def decode(self, latents: Tensor) -> Tensor:
        return self._rounded(latents).to(latents.dtype) / self._half_width

    def indices(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> the indices (B, h, w) of the rounded vectors, from 0 to prod(levels) - 1."""
        digits = self._rounded(latents).long() + self._half_width
        return (digits * self.basis).sum(1)  # mixed radix, the first channel fastest

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) -> the vectors (B, C, h, w) that `decode` gives."""
        digits = indices[:, None] // self.basis % self.levels
        return (digits - self._half_width) / self._half_width

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        z = self.encode(features).mean
        metrics = code_use(self.indices(z.detach()), self.num_codes, everywhere=self.training)
        return BottleneckOutput(straight_through(z, self.decode(z)), metrics=metrics)

    @property
    def _half_width(self) -> Tensor:
        return self.levels // 2

    def _rounded(self, latents: Tensor) -> Tensor:
        """The nearest whole numbers k of each channel; generated latents may lie outside the range."""
        low = -self._half_width
        return torch.minimum(torch.maximum((latents * self._half_width).round(), low), low + self.levels - 1)
