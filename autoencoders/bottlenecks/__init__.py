"""Bottlenecks by name."""

from collections.abc import Callable
from typing import cast

from torch import nn

from autoencoders.bottlenecks.base import Bottleneck, BottleneckOutput, Encoding
from autoencoders.bottlenecks.gaussian import Gaussian, gaussian_kl
from autoencoders.bottlenecks.identity import Identity
from autoencoders.bottlenecks.vector_quantizer import VectorQuantizer, perplexity, straight_through
from autoencoders.config import AutoencoderConfig


def _vector_quantizer(config: AutoencoderConfig) -> nn.Module:
    return VectorQuantizer(
        config.num_codes,
        config.channels,
        codebook=config.codebook,
        codebook_decay=config.codebook_decay,
        beta=config.commitment_beta,
        beta_on=config.commitment_on,
        revive_after=config.revive_after,
    )


BOTTLENECKS: dict[str, Callable[[AutoencoderConfig], nn.Module]] = {
    "kl": lambda config: Gaussian(),
    "vq": _vector_quantizer,
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
    "Encoding",
    "Gaussian",
    "Identity",
    "VectorQuantizer",
    "gaussian_kl",
    "make_bottleneck",
    "perplexity",
    "straight_through",
]
