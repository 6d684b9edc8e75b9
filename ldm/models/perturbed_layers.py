"""The layers of a U-Net that a perturbation changes, by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ldm.models.blocks import Attention, ResnetBlock, SelfAttention, SpatialTransformer
from ldm.models.perturbation import Kind
from ldm.runtime.errors import UserError
from ldm.runtime.text import suggest


def chosen_layers(network: nn.Module, kind: Kind, wanted: Sequence[str]) -> tuple[str, ...]:
    """As `ldm.models.unet.UNet.layers`."""
    attention = [name for name, module in network.named_modules() if _attends_to_itself(name, module)]
    whole = [name for name, module in network.named_modules() if isinstance(module, SelfAttention | SpatialTransformer)]
    same = [
        name
        for name, module in network.named_modules()
        if isinstance(module, ResnetBlock) and module.conv_shortcut is None
    ]
    known = [*whole, *same] if kind == "skip" else attention
    if not known:
        what = "layer that can be left out" if kind == "skip" else "self-attention, which this guidance perturbs"
        raise UserError(f"this model's U-Net has no {what}", setting="guidance")
    if not wanted:
        best = whole or same if kind == "skip" else attention
        middle = [name for name in best if name.startswith("mid_block.")]
        lowest = [name for name in best if name.startswith("down_blocks.")] or best
        level = ".".join(lowest[-1].split(".")[:2])
        return tuple(middle or [name for name in lowest if name.startswith(f"{level}.")])
    found: dict[str, None] = {}
    for name in wanted:
        held = [each for each in known if each == name or each.startswith(f"{name}.")]
        if not held:
            flag = "`skipped_layers`" if kind == "skip" else "`perturbed_layers`"
            raise UserError(f"{flag} {name}: no such layer in this model's U-Net", remedy=suggest(name, known))
        found |= dict.fromkeys(held)
    return tuple(found)


def _attends_to_itself(name: str, module: nn.Module) -> bool:
    return isinstance(module, SelfAttention) or (isinstance(module, Attention) and name.endswith("attn1"))
