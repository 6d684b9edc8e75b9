"""The layers of a U-Net that a perturbation changes, by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ldm.models.attention import Attention, SelfAttention, SpatialTransformer
from ldm.models.blocks import ResnetBlock
from ldm.models.perturbation import Kind
from ldm.runtime.errors import UserError
from ldm.runtime.text import suggest


def find_layers(network: nn.Module, kind: Kind, names: Sequence[str]) -> tuple[str, ...]:
    """As `ldm.models.unet.UNet.perturbable_layers`."""
    modules = list(network.named_modules())
    self_attention = [name for name, module in modules if _is_self_attention(name, module)]
    whole_attention = [name for name, module in modules if isinstance(module, SelfAttention | SpatialTransformer)]
    resnets = [name for name, module in modules if isinstance(module, ResnetBlock) and module.conv_shortcut is None]
    candidates = [*whole_attention, *resnets] if kind == "skip" else self_attention
    if not candidates:
        lacking = "layer that can be skipped" if kind == "skip" else "self-attention, which this guidance perturbs"
        raise UserError(f"this model's U-Net has no {lacking}", setting="guidance")
    if not names:
        preferred = whole_attention or resnets if kind == "skip" else self_attention
        middle = [name for name in preferred if name.startswith("mid_block.")]
        down = [name for name in preferred if name.startswith("down_blocks.")] or preferred
        lowest = ".".join(down[-1].split(".")[:2])
        return tuple(middle or [name for name in down if name.startswith(f"{lowest}.")])
    layers: dict[str, None] = {}  # ordered, without repetition
    for name in names:
        matches = [layer for layer in candidates if layer == name or layer.startswith(f"{name}.")]
        if not matches:
            setting = "`skipped_layers`" if kind == "skip" else "`perturbed_layers`"
            raise UserError(f"{setting} {name}: no such layer in this model's U-Net", remedy=suggest(name, candidates))
        layers |= dict.fromkeys(matches)
    return tuple(layers)


def _is_self_attention(name: str, module: nn.Module) -> bool:
    return isinstance(module, SelfAttention) or (isinstance(module, Attention) and name.endswith("attn1"))
