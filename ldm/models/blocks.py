"""The residual blocks of the U-Net and of the noisy classifier, and the levels built of them, as diffusers names them.

x is (B, C, H, W) in any memory format, emb (B, E) the time embedding after silu. The last convolution of a residual
block starts at zero, so that the block starts as the identity (DDPM code; ADM, appendix H).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.block_context import BlockContext


def zeroed(module: nn.Module) -> Any:
    """The same module with all its parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResnetBlock(nn.Module):
    """norm, silu, conv, time, norm, silu, conv, plus the input. Time is added, or scales and shifts (ADM's AdaGN)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_width: int,
        *,
        groups: int,
        eps: float,
        dropout: float,
        scale_shift: bool,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_width, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.scale_shift = scale_shift
        self.dropout = dropout

    def forward(self, x: Tensor, emb: Tensor, context: BlockContext) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C_out, H, W)
        time = self.time_emb_proj(emb) if context.time_projections is None else context.time_projections[self]
        time = time.view(len(x), -1, 1, 1)  # (B, C_out or 2 C_out, 1, 1)
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + time)
        h = F.silu(h)
        if self.dropout and self.training:
            h = F.dropout(h, self.dropout)
        h = self.conv2(h)
        return context.output(self, x, (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h)


class FusedTimeProjection(NamedTuple):
    """The projections of the time embedding of all residual blocks, as one product."""

    resnets: tuple[ResnetBlock, ...]
    weight: Tensor  # (sum of C or 2 C, E)
    bias: Tensor

    @classmethod
    def of(cls, network: nn.Module) -> FusedTimeProjection:
        resnets = tuple(module for module in network.modules() if isinstance(module, ResnetBlock))
        projections = [resnet.time_emb_proj for resnet in resnets]
        weights, biases = zip(*((layer.weight, layer.bias) for layer in projections), strict=True)
        return cls(resnets, torch.cat(weights), torch.cat(biases))

    def project(self, emb: Tensor) -> dict[nn.Module, Tensor]:
        """(B, C or 2 C) for every block."""
        widths = [resnet.time_emb_proj.out_features for resnet in self.resnets]
        return dict(zip(self.resnets, F.linear(emb, self.weight, self.bias).split(widths, dim=1), strict=True))


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H / 2, W / 2) by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2 H, 2 W) by repetition, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Block(nn.Module):
    """One level of the network: residual blocks, each with an attention or without, then a change of size or none."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        self.has_attention = bool(attentions)

    def layer(self, index: int, x: Tensor, emb: Tensor, context: BlockContext) -> Tensor:
        """The residual block `index` and the attention after it."""
        x = self.resnets[index](x, emb, context)
        return self.attentions[index](x, context) if self.has_attention else x


class DownBlock(Block):
    """A level on the way down."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__(resnets, attentions)
        self.downsamplers = None if downsample is None else nn.ModuleList([downsample])

    def forward(self, x: Tensor, emb: Tensor, context: BlockContext) -> list[Tensor]:
        """The output of every layer and then of the downsampling, all of them skips; the last is the block's output."""
        outputs = self.layers(x, emb, context)
        return outputs if self.downsamplers is None else [*outputs, self.downsamplers[0](outputs[-1])]

    def layers(self, x: Tensor, emb: Tensor, context: BlockContext) -> list[Tensor]:
        """The output of every layer, without the downsampling."""
        outputs = []
        for index in range(len(self.resnets)):
            x = context.run(self.layer, index, x, emb)  # (B, C, H, W)
            outputs.append(x)
        return outputs


class MidBlock(Block):
    """Residual block; then, with attention, attention and another residual block."""

    def forward(self, x: Tensor, emb: Tensor, context: BlockContext) -> Tensor:
        x = context.run(self.layer, 0, x, emb)
        return context.run(self.resnets[1], x, emb) if self.has_attention else x


class UpBlock(Block):
    """A level on the way up; each layer takes the last skip beside x."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], upsample: nn.Module | None) -> None:
        super().__init__(resnets, attentions)
        self.upsamplers = None if upsample is None else nn.ModuleList([upsample])

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, context: BlockContext) -> Tensor:
        for index in range(len(self.resnets)):
            x = torch.cat((x, skips.pop()), dim=1)  # (B, C + C_skip, H, W)
            x = context.run(self.layer, index, x, emb)  # (B, C_out, H, W)
        return x if self.upsamplers is None else self.upsamplers[0](x)
