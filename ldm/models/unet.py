"""The noise-prediction U-Net: diffusers' `UNet2DConditionModel` in parameter names, configuration and output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.backbone import Backbone, backbone
from ldm.models.blocks import UpBlock, Upsample, zeroed
from ldm.models.encoder import CachedConditioning, Encoder
from ldm.models.perturbation import Kind, Perturbation
from ldm.models.perturbed_layers import find_layers
from ldm.models.unet_config import UNetConfig

__all__ = ["UNet", "UNetConfig"]


@backbone("UNet2DConditionModel")
class UNet(Encoder, Backbone):
    """x (B, C, H, W), t in [0, T-1] (B,) or (), class labels (B,), context (B, L, D) -> (B, C_out, H, W).

    What the output means (epsilon, v, x0) is between the trainer and the sampler.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.config = config
        widths, layers = config.block_out_channels, config.layers_per_block + 1
        self.up_blocks = nn.ModuleList()
        channels = widths[-1]
        for level in reversed(range(len(widths))):
            width, width_above = widths[level], widths[max(level - 1, 0)]
            skip_channels = [width] * (layers - 1) + [width_above]  # in the order of use
            in_channels = [channels] + [width] * (layers - 1)
            self.up_blocks.append(
                UpBlock(
                    [self._resnet(c + skip, width) for c, skip in zip(in_channels, skip_channels, strict=True)],
                    self._attentions(level, layers),
                    Upsample(width) if level > 0 else None,
                )
            )
            channels = width
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = zeroed(nn.Conv2d(widths[0], config.out_channels, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        class_labels: Tensor | None = None,
        context: Tensor | None = None,
        perturbations: Sequence[tuple[Perturbation, Tensor]] = (),
        conditioning: CachedConditioning | None = None,
    ) -> Tensor:
        """`perturbations`: with the samples (B,), as booleans, that they are for. `conditioning`: labels, context."""
        emb, block_context = self.embed(x, t, class_labels, context, perturbations, conditioning)
        h, skips = self.encode(x, emb, block_context)
        for block in self.up_blocks:
            h = block(h, skips, emb, block_context)
        return self.output(h)

    def output(self, h: Tensor) -> Tensor:
        """The last block's features (B, C0, H, W) -> (B, C_out, H, W)."""
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def perturbable_layers(self, kind: Kind, names: Sequence[str] = ()) -> tuple[str, ...]:
        """The modules that a perturbation of this kind changes, by their names in the state dict.

        `names` are modules, or parts of the network ("mid_block", "down_blocks.1") for all modules in them. Default:
        those of the middle, else of the lowest resolution that has any; of several kinds to skip, the attention.
        `UserError` for a name without any, and for a network without self-attention.
        """
        return find_layers(self, kind, names)

    def fixed_inputs(self, class_labels: Tensor | None, context: Tensor | None) -> dict[str, Any]:
        return {"conditioning": self.cache_conditioning(class_labels, context)}

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_diffusers()

    @classmethod
    def from_entries(cls, entries: dict[str, Any]) -> UNet:
        return cls(UNetConfig.from_diffusers(entries))
