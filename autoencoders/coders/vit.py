"""The transformer encoder and decoder: patches in, patches out.

Dosovitskiy et al. 2021, arXiv:2010.11929 (patches, pre-norm blocks); Yu et al. 2022, arXiv:2110.04627 (as encoder and
decoder of a quantised autoencoder); He et al. 2022, arXiv:2111.06377 (fixed positions, linear head to pixels).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.coders.blocks import Coder, recomputed
from autoencoders.settings import ViTConfig

_EPS = 1e-6


def positions(height: int, width: int, channels: int) -> Tensor:
    """Sines and cosines of row and column: (height * width, channels), float32; not learnt, for any size.

    Vaswani et al. 2017, section 3.5, half of the channels for each axis: sin and cos of
    position / 10000^(4 i / channels)
    """
    frequencies = torch.exp(torch.arange(channels // 4, dtype=torch.float64) * (-4 * math.log(1e4) / channels))
    rows, columns = (torch.outer(torch.arange(n, dtype=torch.float64), frequencies) for n in (height, width))
    row = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, width, -1)  # (h, w, channels / 2)
    column = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(height, -1, -1)
    return torch.cat([row, column], 2).flatten(0, 1).float()


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)), on (B, N, width)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.vit_width
        self.heads = config.vit_heads
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.linear_1 = nn.Linear(width, config.hidden)
        self.linear_2 = nn.Linear(config.hidden, width)
        for linear in (self.to_qkv, self.to_out, self.linear_1, self.linear_2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))  # (B, N, 3, heads, c)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, c)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, width)
        x = x + self.to_out(h)
        return x + self.linear_2(F.gelu(self.linear_1(self.norm2(x))))


class _Transformer(Coder):
    """Patches (B, width, h, w) with their positions through all blocks, and normalised."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.vit_layers))
        self.norm_out = nn.LayerNorm(config.vit_width, eps=_EPS)

    def transform(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # (B, h w, width)
        x = x + positions(height, width, x.shape[2]).to(x)
        for block in self.blocks:
            x = recomputed(block, x) if self.gradient_checkpointing else block(x)
        return self.norm_out(x).transpose(1, 2).unflatten(2, (height, width))


class ViTEncoder(_Transformer):
    """Images (B, in_channels, H, W) -> features (B, out_channels, H / p, W / p): one token a patch of p x p pixels."""

    def __init__(self, in_channels: int, out_channels: int, patch: int, config: ViTConfig) -> None:
        super().__init__(config)
        self.conv_in = nn.Conv2d(in_channels, config.vit_width, patch, stride=patch)
        self.conv_out = nn.Conv2d(config.vit_width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.transform(self.conv_in(x)))


class ViTDecoder(_Transformer):
    """Features (B, in_channels, h, w) -> images (B, out_channels, h p, w p): one linear map a token at the end."""

    def __init__(self, in_channels: int, out_channels: int, patch: int, config: ViTConfig) -> None:
        super().__init__(config)
        self.conv_in = nn.Conv2d(in_channels, config.vit_width, 1)
        self.conv_out = nn.ConvTranspose2d(config.vit_width, out_channels, patch, stride=patch)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(self.transform(self.conv_in(z)))
