"""What a U-Net need not compute anew at every step: exactly (`CachedConditioning`), or roughly (`FeatureCache`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.models.blocks import ResnetBlock, TransformerBlock, time_projections


@dataclass(frozen=True, eq=False)
class CachedConditioning:
    """The conditions of a sampling run with all that follows from them alone; the run's steps differ in x and t only.

    Made by `Encoder.prepare` and good for as long as the network's weights stay as they are.
    """

    class_labels: Tensor | None  # (B,)
    context: Tensor | None  # (B, L, D)
    classes: Tensor | None  # (B, E): the embedded labels
    pooled: Tensor | None  # (B, E): the context pooled into one vector
    known: Mapping[nn.Module, tuple[Tensor, Tensor]] | None  # keys and values of each attention to the context
    resnets: tuple[ResnetBlock, ...]
    projections: tuple[Tensor, Tensor]  # weights and biases of all their projections of time, in a row


@dataclass(eq=False)
class FeatureCache:
    """What came up from below the highest resolution in an earlier call, to be taken for this call's.

    Ma et al. 2024, arXiv:2312.00858 (DeepCache), section 3.3, with the first block as the only one that is run. Empty:
    the next call runs the whole network and fills it.
    """

    features: Tensor | None = None  # (B, C, H, W), the input of the last block on the way up


def residual_blocks(network: nn.Module) -> tuple[ResnetBlock, ...]:
    """All that listen to the time, in the order of the state dict."""
    return tuple(module for module in network.modules() if isinstance(module, ResnetBlock))


def keys_values(network: nn.Module, context: Tensor) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Of a context (B, L, D), for every attention to it."""
    flat = context.flatten(0, 1)  # (B L, D)
    blocks = [module for module in network.modules() if isinstance(module, TransformerBlock) and module.crosses]
    return {block.attn2: block.attn2.keys_values(flat, len(context)) for block in blocks}


@torch.no_grad()
def prepare(network: nn.Module, class_labels: Tensor | None, context: Tensor | None) -> CachedConditioning:
    """As `Encoder.prepare`."""
    heard = context is not None and hasattr(network, "add_embedding")
    resnets = residual_blocks(network)
    return CachedConditioning(
        class_labels,
        context,
        None if class_labels is None else network.class_embedding(class_labels),  # type: ignore[operator]
        network.add_embedding(context) if heard else None,  # type: ignore[operator]
        None if context is None else keys_values(network, context),
        resnets,
        time_projections(resnets),
    )
