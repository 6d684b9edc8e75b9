"""Bottlenecks by name, with their options. The modules themselves are beside, one file each; none is imported here."""

from autoencoders.bottlenecks.continuous import (
    BatchNormConfig,
    IdentityConfig,
    KLConfig,
    LinearConfig,
    NoneConfig,
    NVAEConfig,
    VonMisesFisherConfig,
)
from autoencoders.bottlenecks.discrete import (
    CosineVQConfig,
    FiniteScalarConfig,
    GumbelConfig,
    LookupFreeConfig,
    ProductVQConfig,
    ResidualVQConfig,
    VQConfig,
    VQVAE2Config,
)
from autoencoders.bottlenecks.registry import (
    BottleneckConfig,
    bottleneck,
    bottlenecks,
    get_bottleneck,
    make_options,
    parse_bottleneck,
)

__all__ = [
    "BatchNormConfig", "BottleneckConfig", "CosineVQConfig", "FiniteScalarConfig", "GumbelConfig", "IdentityConfig",
    "KLConfig", "LinearConfig", "LookupFreeConfig", "NVAEConfig", "NoneConfig", "ProductVQConfig", "ResidualVQConfig",
    "VQConfig", "VQVAE2Config", "VonMisesFisherConfig", "bottleneck", "bottlenecks", "get_bottleneck", "make_options",
    "parse_bottleneck",
]  # fmt: skip
