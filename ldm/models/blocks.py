"""The blocks of the U-Net and of the noisy classifier, under the parameter names of diffusers.

x is (B, C, H, W) in any memory format, `times` holds silu(time embedding), `told` the text states and perturbations.
Tokens of a whole batch stand in one matrix (B N, C), so that a linear layer is a single product without reshaping.
The last convolution of a residual block starts at zero, so that the block starts as the identity (DDPM code; ADM,
appendix H). A transformer's last layer does not: from zero, the text is not listened to for hundreds of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.perturbation import LayerPerturbation, Told

Run = Callable[..., Tensor]  # run(function, *inputs): plainly, or recomputed in the backward pass


def zeroed(module: nn.Module) -> Any:
    """The same module with all its parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def sinusoidal_embedding(t: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """[sin, cos](t * 10000^(-i / (dim/2 - shift))), or cos first when flipped; DDPM section B, in the dtype of t."""
    half = dim // 2
    steps = torch.arange(half, device=t.device, dtype=t.dtype)
    angles = t[:, None] * torch.exp(steps * (-math.log(10000) / (half - freq_shift)))  # (B, half)
    sin, cos = angles.sin(), angles.cos()
    return torch.cat((cos, sin) if flip_sin_to_cos else (sin, cos), dim=-1)  # (B, dim)


class TimestepEmbedding(nn.Module):
    """The two layers that widen the sinusoids: (B, dim) -> (B, width)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, sinusoids: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class AttentionPooling(nn.Module):
    """States (B, L, D) -> (B, D): a query made of their mean attends to it and to all of them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1, dim) / dim**0.5)
        self.k_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)

    def forward(self, states: Tensor) -> Tensor:
        query = states.mean(1, keepdim=True) + self.positional_embedding  # (B, 1, D)
        states = torch.cat((query, states), dim=1)  # (B, 1 + L, D)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, 1 or 1 + L, D / heads)
            for part in (self.q_proj(query), self.k_proj(states), self.v_proj(states))
        )
        return F.scaled_dot_product_attention(q, k, v).flatten(1)  # (B, D)


class PooledContext(nn.Module):
    """Text states (B, L, D) -> (B, width), which is added to the time embedding (Saharia et al. 2022, section 2.3)."""

    def __init__(self, dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.pool = AttentionPooling(dim, heads)
        self.proj = nn.Linear(dim, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, context: Tensor) -> Tensor:
        return self.norm2(self.proj(self.pool(self.norm1(context))))


class Times(NamedTuple):
    """The embedding of time, and the residual blocks' projections of it where they were made in one product."""

    emb: Tensor  # (B, E), after silu
    parts: Mapping[nn.Module, Tensor] | None = None

    def of(self, resnet: ResnetBlock) -> Tensor:
        """(B, C or 2C) for one block."""
        return resnet.time_emb_proj(self.emb) if self.parts is None else self.parts[resnet]


def projected_at_once(emb: Tensor, resnets: Sequence[ResnetBlock], weight: Tensor, bias: Tensor) -> Times:
    """All blocks' projections by one product with their weights and biases in a row, as `time_projections` has them."""
    parts = F.linear(emb, weight, bias).split([len(resnet.time_emb_proj.weight) for resnet in resnets], dim=1)
    return Times(emb, dict(zip(resnets, parts, strict=True)))


def time_projections(resnets: Sequence[ResnetBlock]) -> tuple[Tensor, Tensor]:
    """The weights (sum of C or 2C, E) and the biases of the blocks' projections of time."""
    projections = [resnet.time_emb_proj for resnet in resnets]
    return torch.cat([each.weight for each in projections]), torch.cat([each.bias for each in projections])


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

    def forward(self, x: Tensor, times: Times) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        time = times.of(self).view(len(x), -1, 1, 1)  # (B, C or 2C, 1, 1)
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + time)
        h = F.silu(h)
        if self.dropout and self.training:
            h = F.dropout(h, self.dropout)
        h = self.conv2(h)
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Attention(nn.Module):
    """Multi-head attention, within each sample of the batch, of tokens (B N, C) to themselves or a context (B L, D)."""

    def __init__(self, channels: int, heads: int, *, context_dim: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        source = channels if context_dim is None else context_dim
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(source, channels, bias=bias)
        self.to_v = nn.Linear(source, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list, for the name `to_out.0`

    def keys_values(self, source: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Of tokens or a context (B N, C): each (B, heads, N, C / heads)."""
        return self._split(self.to_k(source), batch), self._split(self.to_v(source), batch)

    def _split(self, projected: Tensor, batch: int) -> Tensor:
        return projected.view(batch, -1, self.heads, projected.shape[1] // self.heads).transpose(1, 2)

    def forward(
        self,
        tokens: Tensor,
        batch: int,
        known: tuple[Tensor, Tensor] | None = None,
        edits: LayerPerturbation | None = None,
    ) -> Tensor:
        """`known`: the keys and values of a context; None: those of the tokens themselves."""
        q = self._split(self.to_q(tokens), batch)  # (B, heads, N, C / heads)
        k, v = self.keys_values(tokens, batch) if known is None else known
        if edits is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = edits.mixed(v, F.scaled_dot_product_attention(edits.queries(q), k, v))
        return self.to_out[0](mixed.transpose(1, 2).reshape(tokens.shape))  # (B N, C)


class SelfAttention(Attention):
    """Attention among the pixels of x, added to x (diffusers' AttnDownBlock2D and AttnUpBlock2D)."""

    def __init__(self, channels: int, heads: int, *, groups: int, eps: float) -> None:
        super().__init__(channels, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps)
        zeroed(self.to_out)

    def forward(self, x: Tensor, told: Told) -> Tensor:  # type: ignore[override]
        tokens = to_tokens(self.group_norm(x))
        return x + to_image(super().forward(tokens, len(x), edits=told.edits.get(self)), x)


class GEGLU(nn.Module):
    """a * gelu(b) of one product [a, b] (arXiv:2002.05202)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU and back, four times as wide in between. `net.1` is a dropout in diffusers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context (where there is one), feed-forward; each added to the tokens."""

    def __init__(self, channels: int, heads: int, context_dim: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        if context_dim is not None:
            self.norm2 = nn.LayerNorm(channels)
            self.attn2 = Attention(channels, heads, context_dim=context_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.crosses = context_dim is not None

    def forward(self, tokens: Tensor, batch: int, told: Told) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens), batch, edits=told.edits.get(self.attn1))
        if self.crosses:
            tokens = tokens + self.attn2(self.norm2(tokens), batch, self.heard(told, batch))
        return tokens + self.ff(self.norm3(tokens))

    def heard(self, told: Told, batch: int) -> tuple[Tensor, Tensor]:
        """The context's keys and values, where they are not known from before."""
        if told.known is not None:
            return told.known[self.attn2]
        assert told.text is not None  # `Encoder` has checked that there is a context
        return self.attn2.keys_values(told.text, batch)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of x, added to x (diffusers' Transformer2DModel)."""

    def __init__(
        self, channels: int, heads: int, *, context_dim: int | None, layers: int, groups: int, linear: bool
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, heads, context_dim) for _ in range(layers))
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        tokens = _pointwise(self.proj_in, to_tokens(self.norm(x)))  # (B HW, C)
        for block in self.transformer_blocks:
            tokens = block(tokens, len(x), told)
        return x + to_image(_pointwise(self.proj_out, tokens), x)


class Downsample(nn.Module):
    """Half the height and width by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the height and width by repetition, then a convolution."""

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
        self.attends = bool(attentions)

    def layer(self, index: int, x: Tensor, times: Times, told: Told) -> Tensor:
        """The residual block `index` and the attention after it."""
        x = told.kept(self.resnets[index], x, self.resnets[index](x, times))
        return told.kept(self.attentions[index], x, self.attentions[index](x, told)) if self.attends else x


class DownBlock(Block):
    """A level on the way down; every result is kept for the way up."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__(resnets, attentions)
        self.downsamplers = None if downsample is None else nn.ModuleList([downsample])

    def forward(
        self, x: Tensor, times: Times, told: Told, skips: list[Tensor], run: Run, *, downsample: bool = True
    ) -> Tensor:
        for index in range(len(self.resnets)):
            x = run(self.layer, index, x, times, told)
            skips.append(x)
        if downsample and self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x


class MidBlock(Block):
    """Residual block; then, with attention, attention and another residual block."""

    def forward(self, x: Tensor, times: Times, told: Told, run: Run) -> Tensor:
        x = run(self.layer, 0, x, times, told)
        return told.kept(self.resnets[1], x, run(self.resnets[1], x, times)) if self.attends else x


class UpBlock(Block):
    """A level on the way up; each layer takes one kept result beside x."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], upsample: nn.Module | None) -> None:
        super().__init__(resnets, attentions)
        self.upsamplers = None if upsample is None else nn.ModuleList([upsample])

    def forward(self, x: Tensor, times: Times, told: Told, skips: list[Tensor], run: Run) -> Tensor:
        for index in range(len(self.resnets)):
            x = run(self.layer, index, torch.cat((x, skips.pop()), dim=1), times, told)
        return x if self.upsamplers is None else self.upsamplers[0](x)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B HW, C); no copy when x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def to_image(tokens: Tensor, like: Tensor) -> Tensor:
    """(B HW, C) -> (B, C, H, W) with the size of `like`; the result is channels_last."""
    batch, _, height, width = like.shape
    return tokens.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _pointwise(layer: nn.Module, tokens: Tensor) -> Tensor:
    """A linear layer, or a 1x1 convolution read as one, on tokens (B N, C)."""
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)  # type: ignore[arg-type, operator, union-attr]
