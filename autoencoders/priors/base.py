"""The base class of priors over one level of codes, and the layers that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.bottlenecks.base import short_repr
from autoencoders.priors.config import CodeGrid, PriorConfig, PriorShape


@dataclass(frozen=True)
class PriorCondition:
    """The conditions of each sample; None where there is none.

    Class ids (B,) int64, with K for no class; text states (B, L, D), and their mask, (B, L) bool (None: all count);
    the maps of the coarser levels, (B, h, w) each, coarse to fine.
    """

    class_labels: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None
    coarser: tuple[Tensor, ...] = ()

    __repr__ = short_repr


Decoder = Callable[[Tensor, int], Tensor]
"""(codes (B, h, w), n) -> logits (B, K) of the n-th code in raster order, which depend on the codes before n alone.
Called with n = 0, 1, 2, ... in turn."""


class CodePrior(nn.Module):
    """p(codes) of one level, code by code in raster order: p(c) = prod_n p(c_n | c_0, ..., c_{n-1}, condition).

    `forward` gives the logits (B, N, K) of all N codes of whole maps (B, h, w) at once; `decoder` gives those of one
    code after another, for sampling.
    """

    def __init__(self, config: PriorConfig, shape: PriorShape, level: int) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.grid: CodeGrid = shape.levels[level]
        self.coarser = shape.levels[:level]

    def forward(self, codes: Tensor, condition: PriorCondition) -> Tensor:
        """Logits (B, N, K)."""
        raise NotImplementedError

    def decoder(self, condition: PriorCondition, batch: int) -> Decoder:
        """Logits of one code after another, for `batch` samples."""
        raise NotImplementedError

    def nll(self, codes: Tensor, condition: PriorCondition, *, read: Tensor | None = None) -> Tensor:
        """-log p of each code in nats, (B, N), float32 at least. `read`: the network's input in place of `codes`."""
        logits = self(codes if read is None else read, condition)  # (B, N, K)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return F.cross_entropy(logits.transpose(1, 2), codes.flatten(1), reduction="none")

    def check(self, codes: Tensor, condition: PriorCondition) -> None:
        """`ValueError` unless codes (B, h, w) and condition are of this prior's shape."""
        grid, batch = self.grid, len(codes)
        expected = (grid.height, grid.width)
        if codes.ndim != 3 or tuple(codes.shape[1:]) != expected or codes.dtype != torch.int64:
            raise ValueError(f"codes: expected int64 (B, {expected[0]}, {expected[1]}), got {tuple(codes.shape)}")
        self.check_condition(condition, batch)

    def check_condition(self, condition: PriorCondition, batch: int) -> None:
        """`ValueError` unless the condition is that of `batch` samples of this prior."""
        labels, context, mask = condition.class_labels, condition.context, condition.context_mask
        if (labels is None) != (self.shape.num_classes == 0) or (labels is not None and labels.shape != (batch,)):
            shape = f"({batch},)" if self.shape.num_classes else "none"
            raise ValueError(f"class_labels: expected {shape}, got {None if labels is None else tuple(labels.shape)}")
        width = self.shape.context_dim
        size = None if context is None else (len(context), context.shape[-1])
        if size != (None if width is None else (batch, width)):
            raise ValueError(f"context: expected {'none' if width is None else (batch, 'L', width)}, got {size}")
        if mask is not None and (context is None or mask.shape != context.shape[:2]):
            raise ValueError(f"context_mask: expected one entry for each text state, got {tuple(mask.shape)}")
        maps = [tuple(codes.shape) for codes in condition.coarser]
        if maps != [(batch, grid.height, grid.width) for grid in self.coarser]:
            raise ValueError(f"coarser: expected the maps of {len(self.coarser)} coarser levels, got {maps}")


class CodebookEmbedding(nn.Module):
    """Codes (B, h, w) -> (B, h, w, D), with a table for each of the codebooks that are side by side."""

    def __init__(self, grid: CodeGrid, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Embedding(grid.codebooks * grid.num_codes, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)

    def forward(self, codes: Tensor, first: int = 0) -> Tensor:
        """`codes` start in column `first` of the map."""
        columns = torch.arange(first, first + codes.shape[-1], device=codes.device)
        return self.table(codes + columns % self.grid.codebooks * self.grid.num_codes)


class CodebookHead(nn.Module):
    """States (B, n, D) of the codes from number `first` on -> logits (B, n, K), by the head of each code's codebook."""

    def __init__(self, grid: CodeGrid, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.randn(grid.codebooks, grid.num_codes, width) * 0.1 * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(grid.codebooks, grid.num_codes))

    def forward(self, states: Tensor, first: int = 0) -> Tensor:
        codebooks, batch, count = self.grid.codebooks, *states.shape[:2]
        if codebooks == 1:
            return F.linear(states, self.weight[0], self.bias[0])
        if count == 1:
            return F.linear(states, self.weight[first % codebooks], self.bias[first % codebooks])
        assert first % codebooks == 0 and count % codebooks == 0, "whole positions"
        split = states.reshape(batch, count // codebooks, codebooks, -1)
        return (torch.einsum("bnpd,pkd->bnpk", split, self.weight) + self.bias).reshape(batch, count, -1)


class SpatialContext(nn.Module):
    """The embedding (B, h, w, D) of each code's row, column and coarser codes.

    The coarser maps go through a residual convolution at their own size and are upsampled to the finer grid, as in the
    conditioning stack of VQ-VAE-2 (Razavi et al. 2019, arXiv:1906.00446, section 3.2). They are added to the codes, not
    put before them in a longer sequence: both networks use them alike, and attention costs no more than without.
    """

    def __init__(self, grid: CodeGrid, coarser: Sequence[CodeGrid], width: int) -> None:
        super().__init__()
        self.grid = grid
        self.rows, self.columns = nn.Embedding(grid.height, width), nn.Embedding(grid.width, width)
        for positions in (self.rows, self.columns):
            nn.init.normal_(positions.weight, std=0.02)
        self.above = nn.ModuleList(_CoarserLevel(coarse, grid, width) for coarse in coarser)

    def forward(self, coarser: Sequence[Tensor], batch: int) -> Tensor:
        positions = self.rows.weight[:, None] + self.columns.weight  # (h, w, D)
        context = positions.expand(batch, -1, -1, -1)
        for above, codes in zip(self.above, coarser, strict=True):
            context = context + above(codes)
        return context


class _CoarserLevel(nn.Module):
    """A coarser map (B, h', w') -> (B, h, w, D) on the finer grid; the codes of one position have the same."""

    def __init__(self, coarse: CodeGrid, fine: CodeGrid, width: int) -> None:
        super().__init__()
        self.coarse, self.fine = coarse, fine
        self.embed = CodebookEmbedding(coarse, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_mid = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        coarse, fine = self.coarse, self.fine
        x = self.embed(codes).unflatten(2, (coarse.columns, coarse.codebooks)).sum(3)  # (B, h', columns', D)
        x = x.permute(0, 3, 1, 2)
        x = x + self.conv_mid(F.silu(self.conv_in(F.silu(x))))
        x = x.repeat_interleave(fine.height // coarse.height, 2).repeat_interleave(fine.columns // coarse.columns, 3)
        x = self.conv_out(F.silu(x))  # (B, D, h, columns)
        return x.permute(0, 2, 3, 1).repeat_interleave(fine.codebooks, 2)


class ConditionEmbedding(nn.Module):
    """Class ids and text states as one vector (B, D) a sample, for networks without attention."""

    def __init__(self, shape: PriorShape, width: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(shape.num_classes + 1, width) if shape.num_classes else None
        self.text = nn.Linear(shape.context_dim, width) if shape.context_dim is not None else None

    def forward(self, condition: PriorCondition) -> Tensor | None:
        embedding = None
        if self.classes is not None:
            embedding = self.classes(condition.class_labels)
        if self.text is not None and condition.context is not None:
            states, mask = self.text(condition.context), condition.context_mask  # (B, L, D)
            if mask is None:
                pooled = states.mean(1)
            else:
                pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
            embedding = pooled if embedding is None else embedding + pooled
        return embedding


def mask_codes(codes: Tensor, probability: float, num_codes: int, uniform: Tensor) -> Tensor:
    """Codes (B, h, w), each replaced with this probability by one drawn uniformly from all K (itself included).

    Esser et al. 2021, arXiv:2012.09841 (their code's "pkeep" is 1 - probability). `uniform` is (B, 2, h, w) in [0, 1).
    """
    random = (uniform[:, 1] * num_codes).long().clamp(max=num_codes - 1)
    return torch.where(uniform[:, 0] < probability, random, codes)
