"""Bottlenecks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from torch import nn

from autoencoders.bottlenecks.base import Bottleneck, BottleneckOutput, Encoding, HasCodes, HasPrior
from autoencoders.bottlenecks.batch_norm import BatchNormConfig, BatchNormGaussian
from autoencoders.bottlenecks.finite_scalar import FiniteScalar, FiniteScalarConfig
from autoencoders.bottlenecks.gaussian import Gaussian, gaussian_kl
from autoencoders.bottlenecks.gumbel import Gumbel, GumbelConfig, gumbel_softmax, uniform_kl
from autoencoders.bottlenecks.identity import Identity
from autoencoders.bottlenecks.lookup_free import LookupFree, LookupFreeConfig
from autoencoders.bottlenecks.nvae import NVAE, NVAEConfig, residual_kl
from autoencoders.bottlenecks.vector_quantizer import VectorQuantizer, perplexity, straight_through
from autoencoders.bottlenecks.von_mises_fisher import VonMisesFisher, VonMisesFisherConfig
from autoencoders.bottlenecks.vq_family import CosineQuantizer, ProductQuantizer, ResidualQuantizer
from autoencoders.bottlenecks.vqvae2 import VQVAE2, VQVAE2Config

if TYPE_CHECKING:  # the settings import those of the bottlenecks, which stand in their files
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


def _lookup_free(config: AutoencoderConfig) -> nn.Module:
    own = config.lfq
    return LookupFree(config.channels, own.entropy_weight, own.entropy_temperature, config.commitment_beta)


def _several(config: AutoencoderConfig, kind: type[ProductQuantizer] | type[ResidualQuantizer]) -> nn.Module:
    return kind(config.num_quantizers, config.channels, lambda channels: _vector_quantizer(config, channels))


def _vqvae2(config: AutoencoderConfig) -> nn.Module:
    channels, groups = config.latent_channels, config.norm_num_groups
    return VQVAE2(config.vqvae2, channels, groups, lambda channels: _vector_quantizer(config, channels))


BOTTLENECKS: dict[str, Callable[[AutoencoderConfig], nn.Module]] = {
    "kl": lambda config: Gaussian(),
    "vq": _vector_quantizer,
    "none": lambda config: Identity(),
    "bn": lambda config: BatchNormGaussian(config.channels, config.bn.mean_scale),
    "vmf": lambda config: VonMisesFisher(config.channels, config.vmf.kappa),
    "fsq": lambda config: FiniteScalar(config.fsq.levels),
    "lfq": _lookup_free,
    "gumbel": lambda config: Gumbel(config.num_codes, config.channels, config.gumbel),
    "cosine_vq": lambda config: _vector_quantizer(config, kind=CosineQuantizer),
    "product_vq": lambda config: _several(config, ProductQuantizer),
    "residual_vq": lambda config: _several(config, ResidualQuantizer),
    "vqvae2": _vqvae2,
    "nvae": lambda config: NVAE(config.nvae, config.latent_channels, config.norm_num_groups),
    "identity": lambda config: Identity(),
    "linear": lambda config: Identity(),  # the encoder and the decoder are the maps
}


def make_bottleneck(config: AutoencoderConfig) -> Bottleneck:
    """The bottleneck that the settings ask for: an `nn.Module` that obeys the `Bottleneck` protocol."""
    return cast(Bottleneck, BOTTLENECKS[config.bottleneck](config))


__all__ = [
    "BOTTLENECKS",
    "NVAE",
    "VQVAE2",
    "BatchNormConfig",
    "BatchNormGaussian",
    "Bottleneck",
    "BottleneckOutput",
    "CosineQuantizer",
    "Encoding",
    "FiniteScalar",
    "FiniteScalarConfig",
    "Gaussian",
    "Gumbel",
    "GumbelConfig",
    "HasCodes",
    "HasPrior",
    "Identity",
    "LookupFree",
    "LookupFreeConfig",
    "NVAEConfig",
    "ProductQuantizer",
    "ResidualQuantizer",
    "VQVAE2Config",
    "VectorQuantizer",
    "VonMisesFisher",
    "VonMisesFisherConfig",
    "gaussian_kl",
    "gumbel_softmax",
    "make_bottleneck",
    "perplexity",
    "residual_kl",
    "straight_through",
    "uniform_kl",
]
