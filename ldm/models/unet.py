"""The noise-prediction U-Net: diffusers' `UNet2DConditionModel` in parameter names, configuration and output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.models.blocks import (
    DownBlock,
    Downsample,
    MidBlock,
    PooledContext,
    ResnetBlock,
    Run,
    SelfAttention,
    SpatialTransformer,
    Times,
    TimestepEmbedding,
    UpBlock,
    Upsample,
    projected_at_once,
    sinusoidal_embedding,
    time_projections,
    zeroed,
)
from ldm.models.caches import CachedConditioning, FeatureCache, prepare, residual_blocks
from ldm.models.perturbation import Kind, Perturbation, Told, edits_of
from ldm.models.perturbed_layers import chosen_layers
from ldm.models.unet_config import UNetConfig
from ldm.models.weights import load_weights, read_config, save_network
from ldm.runtime.errors import UserError

__all__ = ["Encoder", "UNet", "UNetConfig"]

_CLASS_NAME = "UNet2DConditionModel"


class Encoded(NamedTuple):
    """What the way down hands to the way up."""

    h: Tensor  # (B, C, H / factor, W / factor)
    times: Times
    told: Told
    skips: list[Tensor]
    run: Run


class Encoder(nn.Module):
    """The way down and the middle, with the embeddings of time and class; the noisy classifier has this half only.

    `gradient_checkpointing = True` recomputes each layer in the backward pass instead of keeping its activations.
    `one_time_product`: whether all projections of the time are one product, also in training, where the weights must be
    joined anew at each call. None: on a GPU, which waits for the host; on a CPU joining them costs more than it saves.
    """

    def __init__(self, shape: UNetConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.one_time_product: bool | None = None
        self._shape = shape
        widths = shape.block_out_channels
        self._emb_width = 4 * widths[0]
        self.conv_in = nn.Conv2d(shape.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], self._emb_width)
        if shape.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(shape.num_class_embeds, self._emb_width)
        if shape.pooled_context_heads is not None and shape.cross_attention_dim is not None:
            self.add_embedding = PooledContext(shape.cross_attention_dim, self._emb_width, shape.pooled_context_heads)
        self.down_blocks = nn.ModuleList()
        before = widths[0]
        for level, width in enumerate(widths):
            inputs = [before] + [width] * (shape.layers_per_block - 1)
            self.down_blocks.append(
                DownBlock(
                    [self._resnet(channels, width) for channels in inputs],
                    self._attentions(level, len(inputs)),
                    Downsample(width) if level < len(widths) - 1 else None,
                )
            )
            before = width
        self.mid_block = self._mid(before) if shape.mid != "none" else None

    def _resnet(self, in_channels: int, out_channels: int) -> ResnetBlock:
        return ResnetBlock(
            in_channels,
            out_channels,
            self._emb_width,
            groups=self._shape.norm_num_groups,
            eps=self._shape.norm_eps,
            dropout=self._shape.dropout,
            scale_shift=self._shape.resnet_time_scale_shift == "scale_shift",
        )

    def _attentions(self, level: int, count: int) -> list[nn.Module]:
        shape, width = self._shape, self._shape.block_out_channels[level]
        if not shape.attention[level]:
            return []
        if shape.plain_attention:
            groups, eps = shape.norm_num_groups, shape.norm_eps
            return [SelfAttention(width, shape.heads(level), groups=groups, eps=eps) for _ in range(count)]
        return [self._transformer(width, shape.heads(level)) for _ in range(count)]

    def _transformer(self, channels: int, heads: int) -> SpatialTransformer:
        return SpatialTransformer(
            channels,
            heads,
            context_dim=self._shape.cross_attention_dim,
            layers=self._shape.transformer_layers_per_block,
            groups=self._shape.norm_num_groups,
            linear=self._shape.use_linear_projection,
        )

    def _mid(self, channels: int) -> MidBlock:
        attends = self._shape.mid == "attention"
        return MidBlock(
            [self._resnet(channels, channels) for _ in range(2 if attends else 1)],
            [self._transformer(channels, self._shape.mid_heads)] if attends else [],
        )

    def prepare(self, class_labels: Tensor | None = None, context: Tensor | None = None) -> CachedConditioning:
        """What the steps of a sampling run share, to be given as `prepared` in place of labels and context.

        The text's keys, values and pooled vector are the same bits as without; the projections of time, made in one
        product, the same to rounding. No gradient flows into it.
        """
        return prepare(self, class_labels, context)

    def _encode(
        self,
        x: Tensor,
        t: Tensor,
        class_labels: Tensor | None = None,
        context: Tensor | None = None,
        perturbations: Sequence[tuple[Perturbation, Tensor]] = (),
        prepared: CachedConditioning | None = None,
        *,
        shallow: bool = False,
    ) -> Encoded:
        """`shallow`: the first block alone, without what is below it."""
        if prepared is not None:
            class_labels, context = prepared.class_labels, prepared.context
        self._check(x, t, class_labels, context)
        times = self._times(x, t, class_labels, context, prepared)
        text = None if context is None else context.flatten(0, 1)  # (B L, D)
        aspect = x.shape[2] / x.shape[3]
        edits = {"edits": edits_of(self, perturbations, aspect)} if perturbations else {}
        told, run = Told(text, known=None if prepared is None else prepared.known, **edits), self._run()
        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks[:1] if shallow else self.down_blocks:
            h = block(h, times, told, skips, run, downsample=not shallow)
        if self.mid_block is not None and not shallow:
            h = self.mid_block(h, times, told, run)
        return Encoded(h, times, told, skips, run)

    def _times(
        self,
        x: Tensor,
        t: Tensor,
        class_labels: Tensor | None,
        context: Tensor | None,
        prepared: CachedConditioning | None,
    ) -> Times:
        shape = self._shape
        # angles in float32 at least: t reaches 999 and bfloat16 has 8 bits
        precise = torch.promote_types(torch.float32, x.dtype)
        sinusoids = sinusoidal_embedding(
            t.to(device=x.device, dtype=precise).expand(len(x)),
            shape.block_out_channels[0],
            flip_sin_to_cos=shape.flip_sin_to_cos,
            freq_shift=shape.freq_shift,
        )
        emb = self.time_embedding(sinusoids.to(x.dtype))  # (B, 4 C0)
        if class_labels is not None:
            emb = emb + (self.class_embedding(class_labels) if prepared is None else prepared.classes)
        if context is not None and shape.pooled_context_heads is not None:
            emb = emb + (self.add_embedding(context) if prepared is None else prepared.pooled)
        emb = F.silu(emb)  # shared by all residual blocks
        if prepared is not None:
            return projected_at_once(emb, prepared.resnets, *prepared.projections)
        if emb.is_cuda if self.one_time_product is None else self.one_time_product:
            resnets = residual_blocks(self)
            return projected_at_once(emb, resnets, *time_projections(resnets))
        return Times(emb)

    def _run(self) -> Run:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return partial(checkpoint, use_reentrant=False, preserve_rng_state=self._shape.dropout > 0)
        return _plainly

    def _check(self, x: Tensor, t: Tensor, class_labels: Tensor | None, context: Tensor | None) -> None:
        shape = self._shape
        factor = shape.factor
        if x.ndim != 4 or x.shape[1] != shape.in_channels or x.shape[2] % factor or x.shape[3] % factor:
            raise UserError(
                f"U-Net: expected x of shape (B, {shape.in_channels}, H, W) with H and W divisible by "
                f"{factor}, got {tuple(x.shape)}"
            )
        if t.shape not in ((), (1,), (len(x),)):
            raise UserError(f"U-Net: expected t of shape () or ({len(x)},), got {tuple(t.shape)}")
        if (class_labels is None) != (shape.num_class_embeds is None):
            wanted = "none, it knows no classes" if class_labels is not None else f"0 to {shape.num_class_embeds}"
            raise UserError(f"U-Net: class_labels: expected {wanted}")
        if class_labels is not None and class_labels.shape != (len(x),):
            raise UserError(f"U-Net: expected class_labels of shape ({len(x)},), got {tuple(class_labels.shape)}")
        if (context is None) != (shape.cross_attention_dim is None):
            wanted = "none, it takes no text" if context is not None else f"width {shape.cross_attention_dim}"
            raise UserError(f"U-Net: context: expected {wanted}")
        if context is not None and (
            context.ndim != 3 or len(context) != len(x) or context.shape[2] != shape.cross_attention_dim
        ):
            raise UserError(
                f"U-Net: expected context of shape ({len(x)}, L, {shape.cross_attention_dim}), got "
                f"{tuple(context.shape)}"
            )


class UNet(Encoder):
    """x (B, C, H, W), t in [0, T-1] (B,) or (), class labels (B,), context (B, L, D) -> (B, C_out, H, W).

    What the output means (epsilon, v, x0) is between the trainer and the sampler.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.config = config
        widths, layers = config.block_out_channels, config.layers_per_block + 1
        self.up_blocks = nn.ModuleList()
        before = widths[-1]
        for level in reversed(range(len(widths))):
            width, below = widths[level], widths[max(level - 1, 0)]
            skips = [width] * (layers - 1) + [below]  # channels of the kept results, in the order of use
            inputs = [before] + [width] * (layers - 1)
            self.up_blocks.append(
                UpBlock(
                    [self._resnet(channels + skip, width) for channels, skip in zip(inputs, skips, strict=True)],
                    self._attentions(level, layers),
                    Upsample(width) if level > 0 else None,
                )
            )
            before = width
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
        prepared: CachedConditioning | None = None,
        deep: FeatureCache | None = None,
    ) -> Tensor:
        """`perturbations`: each with the samples (B,), as booleans, in which it is done. `prepared`: the conditions.

        `deep`: filled by a whole call if empty, else taken for all that is below the highest resolution.
        """
        known = None if deep is None else deep.features
        h, times, told, skips, run = self._encode(
            x, t, class_labels, context, perturbations, prepared, shallow=known is not None
        )
        if known is None:
            for block in self.up_blocks[:-1]:
                h = block(h, times, told, skips, run)
            if deep is not None:
                deep.features = h
        h = self.up_blocks[-1](h if known is None else known, times, told, skips, run)
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def layers(self, kind: Kind, wanted: Sequence[str] = ()) -> tuple[str, ...]:
        """The modules that a perturbation of this kind changes, by their names in the state dict.

        `wanted` names modules, or parts of the network ("mid_block", "down_blocks.1") for all that they hold. Default:
        those of the middle, else of the lowest resolution that has any; of several kinds to skip, the attention.
        `UserError` for a name that holds none, and for a network without self-attention.
        """
        return chosen_layers(self, kind, wanted)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that diffusers' `UNet2DConditionModel.from_pretrained` reads as well."""
        save_network(folder, _CLASS_NAME, self.config.to_diffusers(), self)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> UNet:
        """Read a folder written here or by diffusers."""
        config = UNetConfig.from_diffusers(read_config(folder, _CLASS_NAME))
        with torch.device("meta"):
            network = cls(config)
        load_weights(folder, network, dtype)
        return network.eval()


def _plainly(function: Run, *inputs: object) -> Tensor:
    return function(*inputs)
