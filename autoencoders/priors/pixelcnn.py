"""Gated PixelCNN (van den Oord et al. 2016, arXiv:1606.05328)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.priors.base import (
    CodebookEmbedding,
    CodebookHead,
    CodePrior,
    ConditionEmbedding,
    Decoder,
    PriorCondition,
    SpatialContext,
)
from autoencoders.priors.config import PriorConfig, PriorShape


class GatedLayer(nn.Module):
    """One layer of the two stacks, (v, h) -> (v, h), each (B, D, rows, columns); figure 2 of the paper.

    At every place v knows the rows above and h those and the codes to the left in its own row: together all that came
    before, with no blind spot. The first layer is given maps that are shifted by one, so that the kernels here may take
    in their own row and column; padding and cropping take the place of masks.
    """

    def __init__(self, width: int, kernel: int, dropout: float, vector: bool) -> None:
        super().__init__()
        self.margin, self.dropout = kernel // 2, dropout
        self.vertical = nn.Conv2d(width, 2 * width, (self.margin + 1, kernel))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, self.margin + 1))
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.surroundings = nn.Conv2d(width, 4 * width, 1, bias=False)  # V s of equation 5, for both stacks
        self.told = nn.Linear(width, 4 * width, bias=False) if vector else None  # V h of equation 4

    def forward(self, v: Tensor, h: Tensor, known: Tensor, told: Tensor | None) -> tuple[Tensor, Tensor]:
        bias = self.surroundings(known)
        if self.told is not None and told is not None:
            bias = bias + self.told(told)[:, :, None, None]
        of_v, of_h = bias.chunk(2, 1)  # (B, 2 D, rows, columns) each
        below = self.vertical(F.pad(v, (self.margin, self.margin, self.margin, 0)))
        beside = self.horizontal(F.pad(h, (self.margin, 0, 0, 0))) + self.across(below)
        kept = F.dropout(gate(beside + of_h), self.dropout, self.training)
        return gate(below + of_v), h + self.out(kept)


def gate(x: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) for the two halves of the channels: equation 2."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class PixelCNN(CodePrior):
    """Masked convolutions: a code depends on those before it within the network's reach.

    Classes and text, the latter as the mean of its states, are a bias in every gate; positions and the coarser levels
    are one at every place.
    """

    def __init__(self, config: PriorConfig, shape: PriorShape, level: int) -> None:
        super().__init__(config, shape, level)
        width = config.width
        self.embed = CodebookEmbedding(self.grid, width)
        self.surroundings = SpatialContext(self.grid, self.coarser, width)
        self.told = ConditionEmbedding(shape, width)
        vector = shape.num_classes > 0 or shape.context_dim is not None
        self.layers = nn.ModuleList(
            GatedLayer(width, config.kernel_size, config.dropout, vector) for _ in range(config.layers)
        )
        self.mix = nn.Conv2d(width, width, 1)
        self.head = CodebookHead(self.grid, width)

    @property
    def receptive_field(self) -> int:
        """How many rows up a code can see."""
        return 1 + len(self.layers) * (self.config.kernel_size // 2)

    def forward(self, codes: Tensor, condition: PriorCondition) -> Tensor:
        self.check(codes, condition)
        known = self.surroundings(condition.coarser, len(codes)).permute(0, 3, 1, 2)  # (B, D, h, w)
        states = self._states(self.embed(codes), known, self.told(condition))
        return self.head(states.flatten(1, 2))

    def _states(self, embedded: Tensor, known: Tensor, told: Tensor | None) -> Tensor:
        """Embedded codes (B, rows, w, D) -> states (B, rows, w, D), of which each knows the codes before its own."""
        x = embedded.permute(0, 3, 1, 2)  # (B, D, rows, w)
        v = F.pad(x, (0, 0, 1, 0))[:, :, :-1]  # the row above
        h = F.pad(x, (1, 0, 0, 0))[:, :, :, :-1]  # the code to the left
        for layer in self.layers:
            v, h = layer(v, h, known, told)
        return F.relu(self.mix(F.relu(h))).permute(0, 2, 3, 1)

    def decoder(self, condition: PriorCondition, batch: int) -> Decoder:
        """Each code runs the network over the rows within its reach, which gives the same as over all."""
        self.check_condition(condition, batch)
        known = self.surroundings(condition.coarser, batch).permute(0, 3, 1, 2)
        told = self.told(condition)

        def logits(codes: Tensor, n: int) -> Tensor:
            row, column = divmod(n, self.grid.width)
            rows = slice(max(0, row - self.receptive_field), row + 1)
            states = self._states(self.embed(codes[:, rows]), known[:, :, rows], told)
            return self.head(states[:, -1, column : column + 1], n)[:, 0]

        return logits
