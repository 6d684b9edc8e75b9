"""What the blocks of a U-Net take in one call besides x and the time embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from ldm.models.perturbation import LayerPerturbation


class BlockContext(NamedTuple):
    """The text, the layers' perturbations, and how the layers are run. A tuple: sharding looks for tensors in it."""

    text_states: Tensor | None = None  # (B L, D)
    context_kv: Mapping[nn.Module, tuple[Tensor, Tensor]] | None = None  # by cross-attention; None: from text_states
    perturbations: Mapping[nn.Module, LayerPerturbation] = MappingProxyType({})
    time_projections: Mapping[nn.Module, Tensor] | None = None  # by residual block; None: each projects emb itself
    checkpoint: Callable[..., Tensor] | None = None  # calls a function that is computed anew in the backward pass

    def run(self, function: Callable[..., Tensor], *inputs: object) -> Tensor:
        """function(*inputs, self), checkpointed where activations are."""
        return function(*inputs, self) if self.checkpoint is None else self.checkpoint(function, *inputs, self)

    def output(self, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """The output (B, C, H, W) of a residual layer, and its input x in the samples in which it is skipped."""
        perturbation = self.perturbations.get(layer)
        return output if perturbation is None else perturbation.output(x, output)
