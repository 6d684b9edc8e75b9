"""The convolutional encoder and decoder (Rombach et al. 2022, arXiv:2112.10752, appendix G).

Names and arithmetic are those of the encoder and decoder inside diffusers' `AutoencoderKL` and `VQModel`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.coders.blocks import Coder, MidBlock, Stage, group_norm, recomputed


class Encoder(Coder):
    """Images (B, in_channels, H, W) -> features (B, out_channels, H / f, W / f), f = 2 ** (levels - 1)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        attention: bool,
        attention_levels: Collection[int] = (),
    ) -> None:
        super().__init__()
        levels = len(block_out_channels)
        widths = [block_out_channels[0], *block_out_channels]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Stage(
                in_channels=widths[level],
                out_channels=widths[level + 1],
                layers=layers_per_block,
                groups=norm_num_groups,
                attention=level in attention_levels,
                resample="down" if level < levels - 1 else "none",
            )
            for level in range(levels)
        )
        self.mid_block = MidBlock(widths[-1], norm_num_groups, attention)
        self.conv_norm_out = group_norm(norm_num_groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)  # (B, width 0, H, W)
        for block in self.down_blocks:
            x = recomputed(block, x) if self.gradient_checkpointing else block(x)  # each but the last halves H and W
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(Coder):
    """Features (B, in_channels, h, w) -> images (B, out_channels, h * f, w * f): the encoder's mirror image."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        attention: bool,
        attention_levels: Collection[int] = (),
    ) -> None:
        super().__init__()
        levels = range(len(block_out_channels) - 1, -1, -1)  # coarse to fine
        widths = [*block_out_channels, block_out_channels[-1]]
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.mid_block = MidBlock(widths[-1], norm_num_groups, attention)
        self.up_blocks = nn.ModuleList(
            Stage(
                in_channels=widths[level + 1],
                out_channels=widths[level],
                layers=layers_per_block + 1,
                groups=norm_num_groups,
                attention=level in attention_levels,
                resample="up" if level > 0 else "none",
            )
            for level in levels
        )
        self.conv_norm_out = group_norm(norm_num_groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))  # (B, width -1, h, w)
        for block in self.up_blocks:
            x = recomputed(block, x) if self.gradient_checkpointing else block(x)  # each but the last doubles h and w
        return self.conv_out(F.silu(self.conv_norm_out(x)))
