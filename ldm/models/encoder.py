"""The half of the U-Net that the noisy classifier shares: embeddings, the way down and the middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.models.attention import SelfAttention, SpatialTransformer, TransformerBlock
from ldm.models.block_context import BlockContext
from ldm.models.blocks import DownBlock, Downsample, FusedTimeProjection, MidBlock, ResnetBlock
from ldm.models.embeddings import PooledContext, TimestepEmbedding, sinusoidal_embedding
from ldm.models.perturbation import Perturbation, layer_perturbations
from ldm.models.unet_config import UNetConfig
from ldm.runtime.errors import UserError


@dataclass(frozen=True, eq=False)
class CachedConditioning:
    """The conditions of a sampling run with all that follows from them alone; its steps differ in x and t only.

    Made by `Encoder.cache_conditioning` and good for as long as the network's weights stay as they are.
    """

    class_labels: Tensor | None  # (B,)
    context: Tensor | None  # (B, L, D)
    class_emb: Tensor | None  # (B, E): the embedded labels
    pooled_emb: Tensor | None  # (B, E): the context pooled into one vector
    context_kv: Mapping[nn.Module, tuple[Tensor, Tensor]] | None  # keys and values of each attention to the context
    time_projection: FusedTimeProjection


class Encoder(nn.Module):
    """Embeddings of time, class and text; the blocks of the way down and of the middle.

    `gradient_checkpointing = True` recomputes each layer in the backward pass instead of keeping its activations.
    `one_time_product`: whether all projections of the time are one product, also in training, where the weights must be
    joined anew at each call. None: on a GPU, which waits for the host; on a CPU joining them costs more than it saves.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.one_time_product: bool | None = None
        self.encoder_config = config
        widths = config.block_out_channels
        emb_width = 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], emb_width)
        if config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, emb_width)
        if config.pooled_context_heads is not None and config.cross_attention_dim is not None:
            self.add_embedding = PooledContext(config.cross_attention_dim, emb_width, config.pooled_context_heads)
        self.down_blocks = nn.ModuleList()
        channels = widths[0]
        for level, width in enumerate(widths):
            in_channels = [channels] + [width] * (config.layers_per_block - 1)
            self.down_blocks.append(
                DownBlock(
                    [self._resnet(channels, width) for channels in in_channels],
                    self._attentions(level, len(in_channels)),
                    Downsample(width) if level < len(widths) - 1 else None,
                )
            )
            channels = width
        self.mid_block = self._mid(channels) if config.mid != "none" else None

    def _resnet(self, in_channels: int, out_channels: int) -> ResnetBlock:
        config = self.encoder_config
        return ResnetBlock(
            in_channels,
            out_channels,
            4 * config.block_out_channels[0],
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            dropout=config.dropout,
            scale_shift=config.resnet_time_scale_shift == "scale_shift",
        )

    def _attentions(self, level: int, count: int) -> list[nn.Module]:
        config, width = self.encoder_config, self.encoder_config.block_out_channels[level]
        if not config.attention[level]:
            return []
        if config.plain_attention:
            groups, eps = config.norm_num_groups, config.norm_eps
            return [SelfAttention(width, config.heads(level), groups=groups, eps=eps) for _ in range(count)]
        return [self._transformer(width, config.heads(level)) for _ in range(count)]

    def _transformer(self, channels: int, heads: int) -> SpatialTransformer:
        config = self.encoder_config
        return SpatialTransformer(
            channels,
            heads,
            context_dim=config.cross_attention_dim,
            layers=config.transformer_layers_per_block,
            groups=config.norm_num_groups,
            linear=config.use_linear_projection,
        )

    def _mid(self, channels: int) -> MidBlock:
        has_attention = self.encoder_config.mid == "attention"
        return MidBlock(
            [self._resnet(channels, channels) for _ in range(2 if has_attention else 1)],
            [self._transformer(channels, self.encoder_config.mid_heads)] if has_attention else [],
        )

    @torch.no_grad()
    def cache_conditioning(
        self, class_labels: Tensor | None = None, context: Tensor | None = None
    ) -> CachedConditioning:
        """What the steps of a sampling run share, as `conditioning` in place of labels and context.

        The text's keys, values and pooled vector are the same bits as without; the projections of time, made in one
        product, the same to rounding. No gradient flows into it.
        """
        class_emb = pooled_emb = None
        context_kv: dict[nn.Module, tuple[Tensor, Tensor]] | None = None
        if class_labels is not None:
            class_emb = self.class_embedding(class_labels)
        if context is not None:
            if self.encoder_config.pooled_context_heads is not None:
                pooled_emb = self.add_embedding(context)
            states = context.flatten(0, 1)  # (B L, D)
            blocks = [module for module in self.modules() if isinstance(module, TransformerBlock)]
            attentions = [block.attn2 for block in blocks if block.has_cross_attention]
            context_kv = {attention: attention.keys_values(states, len(context)) for attention in attentions}
        fused = FusedTimeProjection.of(self)
        return CachedConditioning(class_labels, context, class_emb, pooled_emb, context_kv, fused)

    def embed(
        self,
        x: Tensor,
        t: Tensor,
        class_labels: Tensor | None = None,
        context: Tensor | None = None,
        perturbations: Sequence[tuple[Perturbation, Tensor]] = (),
        conditioning: CachedConditioning | None = None,
    ) -> tuple[Tensor, BlockContext]:
        """The embedding of time, class and text (B, 4 C0), after silu, and what else the blocks take."""
        config, cached = self.encoder_config, conditioning
        if cached is not None:
            class_labels, context = cached.class_labels, cached.context
        _check(config, x, t, class_labels, context)
        # angles in float32 at least: t reaches 999 and bfloat16 has 8 bits
        precise = torch.promote_types(torch.float32, x.dtype)
        sinusoids = sinusoidal_embedding(
            t.to(device=x.device, dtype=precise).expand(len(x)),
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )  # (B, C0)
        emb = self.time_embedding(sinusoids.to(x.dtype))  # (B, 4 C0)
        if class_labels is not None:
            emb = emb + (self.class_embedding(class_labels) if cached is None else cached.class_emb)
        if context is not None and config.pooled_context_heads is not None:
            emb = emb + (self.add_embedding(context) if cached is None else cached.pooled_emb)
        emb = F.silu(emb)
        fused = None if cached is None else cached.time_projection
        if fused is None and (emb.is_cuda if self.one_time_product is None else self.one_time_product):
            fused = FusedTimeProjection.of(self)
        recompute = None
        if self.gradient_checkpointing and torch.is_grad_enabled():
            recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=config.dropout > 0)
        return emb, BlockContext(
            text_states=None if context is None else context.flatten(0, 1),  # (B L, D)
            context_kv=None if cached is None else cached.context_kv,
            perturbations=layer_perturbations(self, perturbations, x.shape[2] / x.shape[3]),
            time_projections=None if fused is None else fused.project(emb),
            checkpoint=recompute,
        )

    def encode(self, x: Tensor, emb: Tensor, context: BlockContext) -> tuple[Tensor, list[Tensor]]:
        """The output of the middle (B, C, H / factor, W / factor), and the skips: all outputs on the way down."""
        skips = [self.conv_in(x)]  # (B, C0, H, W)
        for block in self.down_blocks:
            skips += block(skips[-1], emb, context)
        return (skips[-1] if self.mid_block is None else self.mid_block(skips[-1], emb, context)), skips


def _check(config: UNetConfig, x: Tensor, t: Tensor, class_labels: Tensor | None, context: Tensor | None) -> None:
    factor, width, channels = config.factor, config.cross_attention_dim, config.in_channels
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % factor or x.shape[3] % factor:
        expected = f"(B, {channels}, H, W) with H and W divisible by {factor}"
        raise UserError(f"U-Net: expected x of shape {expected}, got {tuple(x.shape)}")
    batch = len(x)
    if t.shape not in ((), (1,), (batch,)):
        raise UserError(f"U-Net: expected t of shape () or ({batch},), got {tuple(t.shape)}")
    if (class_labels is None) != (config.num_class_embeds is None):
        none = "none, it is not conditioned on classes"
        expected = f"0 to {config.num_class_embeds}" if class_labels is None else none
        raise UserError(f"U-Net: class_labels: expected {expected}")
    if class_labels is not None and class_labels.shape != (batch,):
        raise UserError(f"U-Net: expected class_labels of shape ({batch},), got {tuple(class_labels.shape)}")
    if (context is None) != (width is None):
        expected = f"width {width}" if context is None else "none, it is not conditioned on text"
        raise UserError(f"U-Net: context: expected {expected}")
    if context is not None and (context.ndim != 3 or len(context) != batch or context.shape[2] != width):
        raise UserError(f"U-Net: expected context of shape ({batch}, L, {width}), got {tuple(context.shape)}")
