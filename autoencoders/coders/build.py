"""The encoder and the decoder that the settings ask for."""

from __future__ import annotations

from typing import TypeAlias, TypeGuard

from autoencoders.coders.conv import Decoder, Encoder
from autoencoders.coders.linear import LinearDecoder, LinearEncoder
from autoencoders.coders.vit import ViTDecoder, ViTEncoder
from autoencoders.config import AutoencoderConfig

AnyEncoder: TypeAlias = Encoder | LinearEncoder | ViTEncoder
AnyDecoder: TypeAlias = Decoder | LinearDecoder | ViTDecoder


def make_coder(config: AutoencoderConfig, features: int) -> tuple[AnyEncoder | None, AnyDecoder | None]:
    """An encoder that gives so many channels of features, and its decoder; None and None where pixels are latents."""
    if config.bottleneck == "identity":
        return None, None
    if config.bottleneck == "linear":
        linear = config.in_channels, config.latent_channels, config.patch_size
        return LinearEncoder(*linear), LinearDecoder(*linear)
    inputs, outputs = config.decoder_inputs, config.decoder_channels
    if config.coder == "vit":
        encoder = ViTEncoder(config.in_channels, features, config.patch_size, config.vit)
        return encoder, ViTDecoder(inputs, outputs, config.patch_size, config.vit)
    shape = (
        config.block_out_channels,
        config.layers_per_block,
        config.norm_num_groups,
        config.attention,
        config.attention_levels,
    )
    return Encoder(config.in_channels, features, *shape), Decoder(inputs, outputs, *shape)


def has_stages(network: object) -> TypeGuard[Encoder | Decoder | ViTEncoder | ViTDecoder]:
    """Whether it is made of stages whose activations may be recomputed."""
    return isinstance(network, Encoder | Decoder | ViTEncoder | ViTDecoder)
