"""VQ-VAE-2: codebooks on several levels, coarse to fine (Razavi et al. 2019, arXiv:1906.00446)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoencoders.bottlenecks.base import Bottleneck, BottleneckOutput, Encoding
from autoencoders.bottlenecks.hierarchy import BottomUp, pack, unpack
from autoencoders.bottlenecks.vector_quantizer import VectorQuantizer
from autoencoders.coders.blocks import Stage, Upsample
from autoencoders.distributed import random_rows


class VQVAE2(Bottleneck):
    """Features (B, width, H, W) -> quantised vectors of every level, upsampled and side by side: (B, levels * C, H, W).

    Level 0, the coarsest, is quantised first. Its vectors are decoded, brought to the next level's grid and joined with
    that level's features before they are quantised, and so on, so that a finer level need only hold what the coarser
    ones do not (section 3.1). The latents are the vectors before quantisation of all levels, packed into one tensor at
    the coarsest grid; `decode` quantises them.

    Losses are sums over the levels, each level's a mean over its elements. Metrics are named by level: perplexity_0,
    used_codes_0, ...; bits_per_place counts the indices of all levels, for a position of the finest grid.
    """

    def __init__(
        self,
        levels: int,
        width: int,
        norm_groups: int,
        num_codes: int,
        channels: int,
        *,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        """`dropout` is the share of training images without finer levels; `options` are those of `VectorQuantizer`."""
        super().__init__()
        self.levels, self.dropout = range(levels), dropout
        self.channels = [channels] * levels
        self.bottom_up = BottomUp(levels, width, norm_groups)
        self.conv_codes = nn.ModuleList(nn.Conv2d(2 * width if level else width, channels, 1) for level in self.levels)
        quantizers = nn.ModuleList(VectorQuantizer(num_codes, channels, **options) for _ in self.levels)
        self.add_module("parts", quantizers)  # the name in weight files
        # the state of a level, for the next: from its vectors and the state before
        inputs = [channels] + [channels + width] * (levels - 2)
        self.conv_known = nn.ModuleList(nn.Conv2d(count, width, 1) for count in inputs)
        self.up_blocks = nn.ModuleList(Stage(width, width, 1, norm_groups, False, "up") for _ in self.levels[:-1])
        self.upsamplers = nn.ModuleList(
            nn.Sequential(*(Upsample(channels) for _ in range(levels - 1 - level))) for level in self.levels
        )

    def quantizers(self) -> list[VectorQuantizer]:
        """Those of the levels, coarse to fine."""
        return [cast(VectorQuantizer, quantizer) for quantizer in self.get_submodule("parts").children()]

    def encode(self, features: Tensor) -> Encoding:
        latents = []

        def quantise(level: int, z: Tensor) -> Tensor:
            quantizer = self.quantizers()[level]
            latents.append(quantizer.encode(z).mean)
            return quantizer.decode(latents[-1])

        self._descend(features, quantise)
        return Encoding(pack(latents))

    def decode(self, latents: Tensor) -> Tensor:
        levels = unpack(latents, self.channels)
        return self.join([quantizer.decode(z) for quantizer, z in zip(self.quantizers(), levels, strict=True)])

    def to_indices(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Packed latents -> the indices (B, h 2^l, w 2^l) of each level, coarse to fine."""
        levels = unpack(latents, self.channels)
        return tuple(quantizer.indices(z) for quantizer, z in zip(self.quantizers(), levels, strict=True))

    def from_indices(self, indices: Sequence[Tensor]) -> Tensor:
        """Indices as `to_indices` gives them -> the decoder's input (B, levels * C, H, W).

        `ValueError` unless each level is twice as fine as the one before.
        """
        shapes = [tuple(index.shape[1:]) for index in indices]
        height, width = shapes[0]
        if shapes != [(height << level, width << level) for level in self.levels]:
            raise ValueError(f"codes: expected every level twice as fine as the one before, got {shapes}")
        return self.join([quantizer.lookup(index) for quantizer, index in zip(self.quantizers(), indices, strict=True)])

    def join(self, vectors: Sequence[Tensor]) -> Tensor:
        """The vectors (B, C, h 2^l, w 2^l) of all levels on the finest grid, side by side; zeros leave a level out."""
        return torch.cat([upsample(z) for upsample, z in zip(self.upsamplers, vectors, strict=True)], 1)

    @torch.no_grad()
    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """As `VectorQuantizer.initialise`, level by level, the finer ones conditioned on the coarser."""

        def quantise(level: int, z: Tensor) -> Tensor:
            quantizer = self.quantizers()[level]
            quantizer.initialise(z, generator)
            return quantizer.decode(z)

        self._descend(features, quantise)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        outputs: list[BottleneckOutput] = []

        def quantise(level: int, z: Tensor) -> Tensor:
            outputs.append(self.quantizers()[level](z, generator))
            return outputs[-1].latents

        vectors = self._descend(features, quantise)
        if self.training and self.dropout and generator is not None:
            vectors = [z * mask for z, mask in zip(vectors, self._level_masks(features, generator), strict=True)]
        losses = {name: torch.stack([output.losses[name] for output in outputs]).sum() for name in outputs[0].losses}
        bits = [output.metrics["perplexity"].log2() / 4**above for above, output in enumerate(reversed(outputs))]
        metrics = {f"{name}_{level}": value for level in self.levels for name, value in outputs[level].metrics.items()}
        return BottleneckOutput(self.join(vectors), losses, {**metrics, "bits_per_place": torch.stack(bits).sum()})

    def _level_masks(self, features: Tensor, generator: torch.Generator) -> list[Tensor]:
        """1 or 0 for each level and image (B, 1, 1, 1): whether the decoder has it as input. Level 0 it always has."""
        dropped, which = random_rows(torch.rand, (len(features), 2, 1, 1, 1), generator).to(features).unbind(1)
        last = torch.where(dropped < self.dropout, (which * self.levels[-1]).floor(), self.levels[-1])
        return [(level <= last).to(features.dtype) for level in self.levels]

    def _descend(self, features: Tensor, quantise: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        """The vectors (B, C, h 2^l, w 2^l) of each level: `quantise(level, vectors of the same shape)`."""
        vectors: list[Tensor] = []
        state: Tensor | None = None  # of the coarser levels
        for level, x in enumerate(self.bottom_up(features)):
            if level:
                coarser = vectors[-1].to(x.dtype)
                coarser = coarser if state is None else torch.cat([coarser, state], 1)
                state = self.up_blocks[level - 1](self.conv_known[level - 1](coarser))
                x = torch.cat([x, state], 1)
            vectors.append(quantise(level, self.conv_codes[level](x)))
        return vectors
