"""A decoder-only transformer over codes (Esser et al. 2021, arXiv:2012.09841; Ramesh et al. 2021, arXiv:2102.12092)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.priors.base import CodebookEmbedding, CodebookHead, CodePrior, Decoder, PriorCondition, SpatialContext
from autoencoders.priors.config import PriorConfig, PriorShape


@dataclass
class Cache:
    """Keys and values of a block's inputs so far: (B, heads, capacity, D / heads), of which `length` are filled."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values with these at the end."""
        start, self.length = self.length, self.length + keys.shape[2]
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Block(nn.Module):
    """Pre-norm attention and a layer of four times the width, (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, allowed: Tensor | None, cache: Cache | None = None) -> Tensor:
        """`allowed` (B or 1, 1, T, all keys) bool is the attention mask; None: the one new token attends to all."""
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, D / heads)
            for projected in self.to_qkv(self.norm1(x)).chunk(3, -1)
        )
        if cache is not None:
            k, v = cache.append(k, v)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + self._dropout(self.to_out(h.transpose(1, 2).flatten(2)))
        return x + self._dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Transformer(CodePrior):
    """Tokens: the text states, then the start, which is the class embedding, then the codes but the last.

    The text is a prefix with full attention; start and codes attend to the text and to the tokens before them. Added to
    each token is the spatial context of the code that it predicts: row, column, coarser codes.
    """

    def __init__(self, config: PriorConfig, shape: PriorShape, level: int) -> None:
        super().__init__(config, shape, level)
        width = config.width
        self.embed = CodebookEmbedding(self.grid, width)
        self.add_module("surroundings", SpatialContext(self.grid, self.coarser, width))  # the name in weight files
        self.start = nn.Embedding(shape.num_classes + 1, width)  # the last: no class
        nn.init.normal_(self.start.weight, std=width**-0.5)
        self.text = nn.Linear(shape.context_dim, width) if shape.context_dim is not None else None
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = CodebookHead(self.grid, width)
        for block in self.blocks:  # residual paths start small, the deeper the network the smaller (GPT-2)
            assert isinstance(block, Block)
            for linear in (block.to_out, block.fc2):
                nn.init.normal_(linear.weight, std=width**-0.5 * (2 * config.layers) ** -0.5 * 0.5)

    def forward(self, codes: Tensor, condition: PriorCondition) -> Tensor:
        self.check(codes, condition)
        batch, length = len(codes), self.grid.length
        context = self.get_submodule("surroundings")(condition.coarser, batch).flatten(1, 2)  # (B, N, D)
        before = torch.cat([self._start(condition, batch), self.embed(codes).flatten(1, 2)[:, :-1]], 1)  # (B, N, D)
        prefix = self._prefix(condition, batch)  # (B, L, D)
        x = torch.cat([prefix, before + context], 1)
        x = F.dropout(x, self.config.dropout, self.training)
        allowed = self._allowed(condition, prefix.shape[1], prefix.shape[1] + length, x.device)
        for block in self.blocks:
            x = block(x, allowed)
        return self.head(self.norm(x[:, prefix.shape[1] :]))

    def decoder(self, condition: PriorCondition, batch: int) -> Decoder:
        """Each code is an input once; keys and values of those before it are cached."""
        self.check_condition(condition, batch)
        context = self.get_submodule("surroundings")(condition.coarser, batch).flatten(1, 2)
        prefix = self._prefix(condition, batch)
        length, heads = prefix.shape[1], self.config.heads
        capacity = (batch, heads, length + self.grid.length, self.config.width // heads)
        caches = [Cache(context.new_empty(capacity), context.new_empty(capacity)) for _ in self.blocks]
        everything = self._allowed(condition, length, length + self.grid.length, context.device)

        def logits(codes: Tensor, n: int) -> Tensor:
            if n == 0:
                x = torch.cat([prefix, self._start(condition, batch) + context[:, :1]], 1)
                allowed = everything[:, :, : length + 1, : length + 1]
            else:
                row, column = divmod(n - 1, self.grid.width)
                token = self.embed(codes[:, row : row + 1, column : column + 1], column)  # (B, 1, 1, D)
                x = token.flatten(1, 2) + context[:, n : n + 1]
                allowed = everything[:, :, length + n : length + n + 1, : length + n + 1]
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, allowed, cache)
            return self.head(self.norm(x[:, -1:]), n)[:, 0]

        return logits

    def _start(self, condition: PriorCondition, batch: int) -> Tensor:
        """(B, 1, D)."""
        labels = condition.class_labels
        start = self.start.weight[-1:].expand(batch, -1) if labels is None else self.start(labels)
        return start[:, None]

    def _prefix(self, condition: PriorCondition, batch: int) -> Tensor:
        """The text as tokens (B, L, D); L = 0 without."""
        if self.text is None or condition.context is None:
            return self.start.weight.new_empty(batch, 0, self.config.width)
        return self.text(condition.context)

    def _allowed(self, condition: PriorCondition, prefix: int, total: int, device: torch.device) -> Tensor:
        """(B or 1, 1, T, T) bool: causal, with full attention inside the text; masked text is attended to by none.

        Every token attends to itself, so that no row is empty.
        """
        allowed = torch.ones(total, total, dtype=torch.bool, device=device).tril()
        allowed[:prefix, :prefix] = True
        if condition.context_mask is None:
            return allowed[None, None]
        counts = F.pad(condition.context_mask.to(device=device, dtype=torch.bool), (0, total - prefix), value=True)
        itself = torch.eye(total, dtype=torch.bool, device=device)
        return (allowed & counts[:, None, :] | itself)[:, None]
