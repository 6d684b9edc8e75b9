"""The encoder and the decoder of an autoencoder: conv, vit, linear."""

from __future__ import annotations

from autoencoders.coders.blocks import Coder
from autoencoders.coders.conv import Decoder, Encoder
from autoencoders.coders.linear import LinearDecoder, LinearEncoder
from autoencoders.coders.vit import ViTDecoder, ViTEncoder
from autoencoders.config import AutoencoderConfig


def make_coder(config: AutoencoderConfig) -> tuple[Coder | None, Coder | None]:
    """The encoder and the decoder of these settings; None and None where the latents are the pixels."""
    if config.coder_kind == "none":
        return None, None
    if config.coder_kind == "linear":
        linear = config.in_channels, config.latent_channels, config.patch_size
        return LinearEncoder(*linear), LinearDecoder(*linear)
    features, inputs = config.options.encoder_outputs(config), config.options.decoder_inputs(config)
    if config.coder_kind == "vit":
        encoder = ViTEncoder(config.in_channels, features, config.patch_size, config.vit)
        return encoder, ViTDecoder(inputs, config.decoder_channels, config.patch_size, config.vit)
    widths, layers = config.block_out_channels, config.layers_per_block
    shape = widths, layers, config.norm_num_groups, config.attention, config.attention_levels
    return Encoder(config.in_channels, features, *shape), Decoder(inputs, config.decoder_channels, *shape)
