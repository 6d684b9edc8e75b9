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

    The receptive field of v at a position is the rows above, that of h also the codes to the left in its own row:
    together all codes before, with no blind spot. The inputs of the first layer are shifted by one, so that the kernels
    may include their own row and column; padding and cropping replace masks.
    """

    def __init__(self, width: int, kernel: int, dropout: float, vector: bool) -> None:
        super().__init__()
        self.margin, self.dropout = kernel // 2, dropout
        self.vertical = nn.Conv2d(width, 2 * width, (self.margin + 1, kernel))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, self.margin + 1))
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        # V s of equation 5 and V h of equation 4, for both stacks; under their names in weight files
        self.add_module("surroundings", nn.Conv2d(width, 4 * width, 1, bias=False))
        self.add_module("told", nn.Linear(width, 4 * width, bias=False) if vector else None)

    def forward(self, v: Tensor, h: Tensor, context: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        bias = self.get_submodule("surroundings")(context)
        if condition is not None:
            bias = bias + self.get_submodule("told")(condition)[:, :, None, None]
        of_v, of_h = bias.chunk(2, 1)  # (B, 2 D, rows, columns) each
        below = self.vertical(F.pad(v, (self.margin, self.margin, self.margin, 0)))
        beside = self.horizontal(F.pad(h, (self.margin, 0, 0, 0))) + self.across(below)
        gated = F.dropout(gate(beside + of_h), self.dropout, self.training)
        return gate(below + of_v), h + self.out(gated)


def gate(x: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) for the two halves of the channels: equation 2."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class PixelCNN(CodePrior):
    """Masked convolutions: a code depends on those before it within the receptive field.

    Classes and text, the latter as the mean of its states, are a bias in every gate; positions and the coarser levels
    are one at every position.
    """

    def __init__(self, config: PriorConfig, shape: PriorShape, level: int) -> None:
        super().__init__(config, shape, level)
        width = config.width
        self.embed = CodebookEmbedding(self.grid, width)
        self.add_module("surroundings", SpatialContext(self.grid, self.coarser, width))  # the names in weight files
        self.add_module("told", ConditionEmbedding(shape, width))
        vector = shape.num_classes > 0 or shape.context_dim is not None
        shared = config.kernel_size, config.dropout, vector
        self.layers = nn.ModuleList(GatedLayer(width, *shared) for _ in range(config.layers))
        self.mix = nn.Conv2d(width, width, 1)
        self.head = CodebookHead(self.grid, width)

    @property
    def receptive_field(self) -> int:
        """Rows above a code on which it depends."""
        return 1 + len(self.layers) * (self.config.kernel_size // 2)

    def forward(self, codes: Tensor, condition: PriorCondition) -> Tensor:
        self.check(codes, condition)
        states = self._states(self.embed(codes), *self._conditioning(condition, len(codes)))
        return self.head(states.flatten(1, 2))

    def _conditioning(self, condition: PriorCondition, batch: int) -> tuple[Tensor, Tensor | None]:
        """The spatial context (B, D, h, w), and the embedded condition (B, D) or None."""
        context = self.get_submodule("surroundings")(condition.coarser, batch).permute(0, 3, 1, 2)
        return context, self.get_submodule("told")(condition)

    def _states(self, embedded: Tensor, context: Tensor, condition: Tensor | None) -> Tensor:
        """Embedded codes (B, rows, w, D) -> states (B, rows, w, D), each of the codes before its own."""
        x = embedded.permute(0, 3, 1, 2)  # (B, D, rows, w)
        v = F.pad(x, (0, 0, 1, 0))[:, :, :-1]  # the row above
        h = F.pad(x, (1, 0, 0, 0))[:, :, :, :-1]  # the code to the left
        for layer in self.layers:
            v, h = layer(v, h, context, condition)
        return F.relu(self.mix(F.relu(h))).permute(0, 2, 3, 1)

    def decoder(self, condition: PriorCondition, batch: int) -> Decoder:
        """The network runs over the rows of the receptive field for each code, which is exact."""
        self.check_condition(condition, batch)
        context, embedding = self._conditioning(condition, batch)

        def logits(codes: Tensor, n: int) -> Tensor:
            row, column = divmod(n, self.grid.width)
            rows = slice(max(0, row - self.receptive_field), row + 1)
            states = self._states(self.embed(codes[:, rows]), context[:, :, rows], embedding)
            return self.head(states[:, -1, column : column + 1], n)[:, 0]

        return logits
