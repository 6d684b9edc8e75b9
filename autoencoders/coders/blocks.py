"""The layers of the convolutional encoder and decoder: residual block, attention, down- and upsampling.

Parameter names are those of diffusers' `AutoencoderKL` and `VQModel`. All tensors are (B, C, H, W); with channels_last
inputs and weights no block makes a copy to change the memory format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORM_EPS = 1e-6


def group_norm(groups: int, channels: int) -> nn.GroupNorm:
    """Group normalisation with the epsilon of latent-diffusion."""
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


def plain_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """The normalisation by the mean and variance of x itself."""
    return norm(x)


def recomputed(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), which in training keeps only x and is computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return layer(x)
    return checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)


class Coder(nn.Module):
    """Base class of encoders and decoders: images or features (B, C, H, W) -> features or images.

    `gradient_checkpointing = True` recomputes each stage in the backward pass; a linear coder has none.
    """

    gradient_checkpointing = False


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut where the width changes.

    A new block starts as its shortcut (conv2 is zero), which on small images saves hundreds of training steps.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, norm: Callable[[nn.GroupNorm, Tensor], Tensor] = plain_norm) -> Tensor:
        """`norm` applies a normalisation: a tile takes the statistics of the whole image."""
        h = self.conv1(F.silu(norm(self.norm1, x)))
        h = self.conv2(F.silu(norm(self.norm2, h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = group_norm(groups, channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = (project(h).unsqueeze(1) for project in (self.to_q, self.to_k, self.to_v))  # (B, 1, HW, C)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)  # (B, HW, C)
        h = self.to_out[0](h).transpose(1, 2).unflatten(2, (height, width))  # (B, C, H, W)
        return x + h


class Downsample(nn.Module):
    """Halve height and width: a 3x3 convolution of stride 2, padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """The residual blocks of one resolution, each with attention after it if there is any, then resampling."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, groups: int, attention: bool, resample: str
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(ResnetBlock(i, o, groups) for i, o in pairwise(widths))
        if attention:
            self.attentions = nn.ModuleList(AttentionBlock(out_channels, groups) for _ in range(layers))
        if resample == "down":
            self.downsamplers = nn.ModuleList([Downsample(out_channels)])
        elif resample == "up":
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])
        self.attention = attention
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers():
            x = layer(x)
        return x

    def layers(self) -> Iterator[nn.Module]:
        """The blocks in the order of their use."""
        for index, resnet in enumerate(self.resnets):
            yield resnet
            if self.attention:
                yield self.attentions[index]
        if self.resample == "down":
            yield self.downsamplers[0]
        elif self.resample == "up":
            yield self.upsamplers[0]


class MidBlock(nn.Module):
    """Residual block, attention if there is any, residual block, at the lowest resolution."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        if attention:
            self.attentions = nn.ModuleList([AttentionBlock(channels, groups)])
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        if self.attention:
            x = self.attentions[0](x)
        return self.resnets[1](x)
