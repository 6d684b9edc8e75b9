"""VQ-VAE-2: codes on several levels, the finer given the coarser (Razavi et al. 2019, arXiv:1906.00446)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from autoencoders.bottlenecks.base import BottleneckOutput, Encoding
from autoencoders.bottlenecks.hierarchy import MAX_LEVELS, MAX_WIDTH, BottomUp, pack, unpack
from autoencoders.bottlenecks.vector_quantizer import VectorQuantizer
from autoencoders.checks import check_int, check_number
from autoencoders.coders.blocks import Stage, Upsample
from autoencoders.posterior_noise import random_rows


@dataclass(frozen=True)
class VQVAE2Config:
    """Settings of the bottleneck "vqvae2"."""

    code_levels: int = 2
    """vqvae2: levels of codes; the finest is the coder's grid, each other is half as fine as the next."""
    code_width: int = 64
    """vqvae2: channels of the network between the levels."""
    code_dropout: float = 0.0
    """vqvae2: share of the training images of which the decoder sees the coarser levels only, so that these hold what a
    picture is on the whole; 0 (the paper): the finest may hold nearly all, for it can."""

    def __post_init__(self) -> None:
        check_int("code_levels", self.code_levels, 2, MAX_LEVELS)
        check_int("code_width", self.code_width, 1, MAX_WIDTH)
        check_number("code_dropout", self.code_dropout, 0, 1)


class VQVAE2(nn.Module):
    """Features (B, width, H, W) -> codes of every level, upsampled and side by side: (B, levels * C, H, W).

    Level 0, the coarsest, is quantised first. What it holds is decoded, brought to the next level's grid and joined
    with that level's features before they are quantised, and so on, so that a finer level need only hold what the
    coarser ones do not (section 3.1). The latents are the vectors before quantisation of all levels, packed into one
    tensor at the coarsest grid; `decode` quantises them.

    Losses are sums over the levels, each level's a mean over its elements. Metrics are named by level: perplexity_0,
    used_codes_0, ...; bits_per_place counts all levels' codes, a place being one of the finest grid.
    """

    def __init__(
        self, config: VQVAE2Config, channels: int, groups: int, make: Callable[[int], VectorQuantizer]
    ) -> None:
        """`make(channels)` gives the quantiser of a level; `groups` are those of the group normalisations."""
        super().__init__()
        levels, width = config.code_levels, config.code_width
        self.levels, self.width, self.dropout = range(levels), width, config.code_dropout
        self.channels = [channels] * levels
        self.bottom_up = BottomUp(levels, width, groups)
        self.conv_codes = nn.ModuleList(nn.Conv2d(2 * width if level else width, channels, 1) for level in self.levels)
        self.parts = nn.ModuleList(make(channels) for _ in self.levels)
        # what is known at a level, for the next: of its codes and of what was known before
        self.conv_known = nn.ModuleList(
            nn.Conv2d(channels + (width if level else 0), width, 1) for level in self.levels[:-1]
        )
        self.up_blocks = nn.ModuleList(Stage(width, width, 1, groups, False, "up") for _ in self.levels[:-1])
        self.upsamplers = nn.ModuleList(
            nn.Sequential(*(Upsample(channels) for _ in range(levels - 1 - level))) for level in self.levels
        )

    def feature_channels(self, latent_channels: int) -> int:
        return self.width

    def quantizers(self) -> list[VectorQuantizer]:
        """Those of the levels, coarse to fine."""
        return [cast(VectorQuantizer, part) for part in self.parts]

    def encode(self, features: Tensor) -> Encoding:
        found = []

        def take(level: int, z: Tensor) -> Tensor:
            quantizer = self.quantizers()[level]
            found.append(quantizer.encode(z).mean)
            return quantizer.decode(found[-1])

        self._descend(features, take)
        return Encoding(pack(found))

    def decode(self, latents: Tensor) -> Tensor:
        levels = unpack(latents, self.channels)
        return self.join([part.decode(level) for part, level in zip(self.quantizers(), levels, strict=True)])

    def to_indices(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Packed latents -> the indices (B, h 2^l, w 2^l) of the codes of each level, coarse to fine."""
        levels = unpack(latents, self.channels)
        return tuple(part.indices(level) for part, level in zip(self.quantizers(), levels, strict=True))

    def from_indices(self, codes: Sequence[Tensor]) -> Tensor:
        """Indices as `to_indices` gives them -> the decoder's input (B, levels * C, H, W).

        `ValueError` unless each level is twice as fine as the one before.
        """
        shapes = [tuple(each.shape[1:]) for each in codes]
        height, width = shapes[0]
        if shapes != [(height << level, width << level) for level in self.levels]:
            raise ValueError(f"codes: expected every level twice as fine as the one before, got {shapes}")
        return self.join([part.lookup(index) for part, index in zip(self.quantizers(), codes, strict=True)])

    def join(self, codes: Sequence[Tensor]) -> Tensor:
        """The codes (B, C, h 2^l, w 2^l) of all levels on the finest grid, side by side; zeros for one not shown."""
        return torch.cat([up(code) for up, code in zip(self.upsamplers, codes, strict=True)], 1)

    @torch.no_grad()
    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """As `VectorQuantizer.initialise`, level by level, the finer ones given the codes of the coarser."""

        def take(level: int, z: Tensor) -> Tensor:
            quantizer = self.quantizers()[level]
            quantizer.initialise(z, generator)
            return quantizer.decode(z)

        self._descend(features, take)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        outputs: list[BottleneckOutput] = []

        def take(level: int, z: Tensor) -> Tensor:
            outputs.append(self.quantizers()[level](z, generator))
            return outputs[-1].latents

        codes = self._descend(features, take)
        if self.training and self.dropout and generator is not None:
            codes = [code * kept for code, kept in zip(codes, self._seen(features, generator), strict=True)]
        losses = {name: torch.stack([each.losses[name] for each in outputs]).sum() for name in outputs[0].losses}
        bits = [each.metrics["perplexity"].log2() / 4**above for above, each in enumerate(reversed(outputs))]
        metrics = {f"{name}_{level}": value for level in self.levels for name, value in outputs[level].metrics.items()}
        return BottleneckOutput(self.join(codes), losses, {**metrics, "bits_per_place": torch.stack(bits).sum()})

    def _seen(self, features: Tensor, generator: torch.Generator) -> list[Tensor]:
        """1 or 0 for each level and image (B, 1, 1, 1): whether the decoder is shown it. Level 0 it always is."""
        dropped, which = random_rows(torch.rand, (len(features), 2, 1, 1, 1), generator).to(features).unbind(1)
        last = torch.where(dropped < self.dropout, (which * self.levels[-1]).floor(), self.levels[-1])
        return [(level <= last).to(features.dtype) for level in self.levels]

    def _descend(self, features: Tensor, take: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        """The codes (B, C, h 2^l, w 2^l) of each level, which `take(level, vectors of the same shape)` gives."""
        codes: list[Tensor] = []
        known: Tensor | None = None  # of the coarser levels
        for level, x in enumerate(self.bottom_up(features)):
            if level:
                told = codes[-1].to(x.dtype)
                told = told if known is None else torch.cat([told, known], 1)
                known = self.up_blocks[level - 1](self.conv_known[level - 1](told))
                x = torch.cat([x, known], 1)
            codes.append(take(level, self.conv_codes[level](x)))
        return codes
