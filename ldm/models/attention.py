"""Attention over the pixels of x (B, C, H, W) and to text, under the parameter names of diffusers.

Tokens of a whole batch are one matrix (B N, C), so that a linear layer is a single product without reshaping. A
transformer's last layer does not start at zero: if it does, the text has no effect for hundreds of steps.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.block_context import BlockContext
from ldm.models.blocks import zeroed
from ldm.models.perturbation import LayerPerturbation


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
        """Of tokens or a context (B N, C): both (B, heads, N, C / heads)."""
        return self._split(self.to_k(source), batch), self._split(self.to_v(source), batch)

    def _split(self, projected: Tensor, batch: int) -> Tensor:
        return projected.view(batch, -1, self.heads, projected.shape[1] // self.heads).transpose(1, 2)

    def forward(
        self,
        tokens: Tensor,
        batch: int,
        context_kv: tuple[Tensor, Tensor] | None = None,
        perturbation: LayerPerturbation | None = None,
    ) -> Tensor:
        """`context_kv`: the keys and values of a context; None: those of the tokens themselves."""
        q = self._split(self.to_q(tokens), batch)  # (B, heads, N, C / heads)
        k, v = self.keys_values(tokens, batch) if context_kv is None else context_kv
        if perturbation is not None:
            q = perturbation.queries(q)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, C / heads)
        if perturbation is not None:
            h = perturbation.attention_output(v, h)
        return self.to_out[0](h.transpose(1, 2).reshape(tokens.shape))  # (B N, C)


class SelfAttention(Attention):
    """Attention among the pixels of x, added to x (diffusers' AttnDownBlock2D and AttnUpBlock2D)."""

    def __init__(self, channels: int, heads: int, *, groups: int, eps: float) -> None:
        super().__init__(channels, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps)
        zeroed(self.to_out)

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:  # type: ignore[override]
        tokens = to_tokens(self.group_norm(x))  # (B HW, C)
        tokens = super().forward(tokens, len(x), perturbation=context.perturbations.get(self))
        return context.output(self, x, x + to_image(tokens, x))


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
        self.has_cross_attention = context_dim is not None

    def forward(self, tokens: Tensor, batch: int, context: BlockContext) -> Tensor:
        perturbation = context.perturbations.get(self.attn1)
        tokens = tokens + self.attn1(self.norm1(tokens), batch, perturbation=perturbation)
        if self.has_cross_attention:
            if context.context_kv is not None:
                kv = context.context_kv[self.attn2]
            else:
                assert context.text_states is not None  # the encoder checks its inputs
                kv = self.attn2.keys_values(context.text_states, batch)
            tokens = tokens + self.attn2(self.norm2(tokens), batch, kv)
        return tokens + self.ff(self.norm3(tokens))


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

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        tokens = _pointwise(self.proj_in, to_tokens(self.norm(x)))  # (B HW, C)
        for block in self.transformer_blocks:
            tokens = block(tokens, len(x), context)
        return context.output(self, x, x + to_image(_pointwise(self.proj_out, tokens), x))


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
