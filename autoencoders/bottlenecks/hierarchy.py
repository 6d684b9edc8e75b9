"""Several latent levels, each twice as fine as the one before: what VQ-VAE-2 and the ladder VAE share.

Level 0 is the coarsest. All levels are packed into one tensor at the coarsest grid, so whatever works on latents
(B, C, h, w) works on a hierarchy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.bottlenecks.registry import packed_channels
from autoencoders.coders.blocks import Stage


def pack(levels: Sequence[Tensor]) -> Tensor:
    """Levels (B, C_l, h 2^l, w 2^l), l = 0, 1, ... -> (B, sum_l C_l 4^l, h, w), space to depth; `unpack` undoes it.

    `ValueError` unless every level is twice as fine as the one before.
    """
    height, width = levels[0].shape[2:]
    for level, x in enumerate(levels):
        if x.shape[2:] != (height << level, width << level):
            raise ValueError(f"level {level}: expected {(height << level, width << level)}, got {tuple(x.shape[2:])}")
    return torch.cat([F.pixel_unshuffle(x, 2**level) for level, x in enumerate(levels)], 1)


def unpack(latents: Tensor, channels: Sequence[int]) -> list[Tensor]:
    """Latents (B, sum_l C_l 4^l, h, w) -> levels (B, C_l, h 2^l, w 2^l); `ValueError` for other channels."""
    if latents.ndim != 4 or latents.shape[1] != packed_channels(channels):
        raise ValueError(f"latents: expected (B, {packed_channels(channels)}, h, w), got {tuple(latents.shape)}")
    packed = latents.split([count * 4**level for level, count in enumerate(channels)], 1)
    return [F.pixel_shuffle(x, 2**level) for level, x in enumerate(packed)]


class BottomUp(nn.Module):
    """Features (B, width, H, W) of the finest level -> those of every level (B, width, H / 2^i, W / 2^i), coarse first.

    From each level to the next coarser one: a residual block and a convolution of stride 2.
    """

    def __init__(self, levels: int, width: int, groups: int) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(Stage(width, width, 1, groups, False, "down") for _ in range(levels - 1))

    def forward(self, features: Tensor) -> list[Tensor]:
        levels = [features]
        for block in self.down_blocks:
            levels.append(block(levels[-1]))
        return levels[::-1]
