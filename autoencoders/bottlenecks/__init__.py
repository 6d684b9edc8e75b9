"""Bottlenecks by name."""

from collections.abc import Callable
from typing import cast

from torch import nn

from autoencoders.bottlenecks.base import Bottleneck, BottleneckOutput, Encoding
from autoencoders.bottlenecks.gaussian import Gaussian, gaussian_kl
from autoencoders.bottlenecks.identity import Identity
from autoencoders.bottlenecks.vector_quantizer import VectorQuantizer, perplexity, straight_through
from autoencoders.bottlenecks.vq_family import CosineQuantizer, ProductQuantizer, ResidualQuantizer
from autoencoders.config import AutoencoderConfig


def _vector_quantizer(
    config: AutoencoderConfig, channels: int | None = None, kind: type[VectorQuantizer] = VectorQuantizer
) -> VectorQuantizer:
    return kind(
        config.num_codes,
        channels or config.channels,
        codebook=config.codebook,
        codebook_decay=config.codebook_decay,
        beta=config.commitment_beta,
        beta_on=config.commitment_on,
        revive_after=config.revive_after,
    )


def _several(config: AutoencoderConfig, kind: type[ProductQuantizer] | type[ResidualQuantizer]) -> nn.Module:
    return kind(config.num_quantizers, config.channels, lambda channels: _vector_quantizer(config, channels))


BOTTLENECKS: dict[str, Callable[[AutoencoderConfig], nn.Module]] = {
    "kl": lambda config: Gaussian(),
    "vq": _vector_quantizer,
    "cosine_vq": lambda config: _vector_quantizer(config, kind=CosineQuantizer),
    "product_vq": lambda config: _several(config, ProductQuantizer),
    "residual_vq": lambda config: _several(config, ResidualQuantizer),
    "identity": lambda config: Identity(),
    "linear": lambda config: Identity(),  # the encoder and the decoder are the maps
}


def make_bottleneck(config: AutoencoderConfig) -> Bottleneck:
    """The bottleneck that the settings ask for: an `nn.Module` that obeys the `Bottleneck` protocol."""
    return cast(Bottleneck, BOTTLENECKS[config.bottleneck](config))


__all__ = [
    "BOTTLENECKS",
    "Bottleneck",
    "BottleneckOutput",
    "CosineQuantizer",
    "Encoding",
    "Gaussian",
    "Identity",
    "ProductQuantizer",
    "ResidualQuantizer",
    "VectorQuantizer",
    "gaussian_kl",
    "make_bottleneck",
    "perplexity",
    "straight_through",
]
