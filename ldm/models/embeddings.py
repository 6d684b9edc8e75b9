"""Embeddings of the time and of a whole text, under the parameter names of diffusers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, 1 or 1 + L, D / heads)
            for projected in (self.q_proj(query), self.k_proj(states), self.v_proj(states))
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
