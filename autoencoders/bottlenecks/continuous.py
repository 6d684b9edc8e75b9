"""The bottlenecks with continuous latents: options, sizes and capabilities. Imports no torch before `build`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autoencoders.bottlenecks.registry import BottleneckConfig, bottleneck
from autoencoders.settings import SharedSettings, check_int, check_number

MAX_LEVELS = 5
MAX_WIDTH = 4096


def check_width(name: str, width: int, config: SharedSettings) -> None:
    """`ValueError` unless the width of the network between levels is a multiple of norm_num_groups."""
    if width % config.norm_num_groups:
        raise ValueError(f"{name}: expected a multiple of norm_num_groups {config.norm_num_groups}, got {width}")


@bottleneck("kl", source="Kingma and Welling 2014, arXiv:1312.6114")
@dataclass(frozen=True)
class KLConfig(BottleneckConfig):
    """Diagonal Gaussian."""

    shared = ("use_quant_conv",)
    class_name = "AutoencoderKL"
    features_per_latent = 2
    has_prior = has_density = calibrated_by_quant_conv = True
    file_defaults: ClassVar[Mapping[str, Any]] = {
        "latent_channels": 4,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    }

    def quant_conv(self, config: SharedSettings) -> bool:
        return config.use_quant_conv

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.gaussian import Gaussian

        return Gaussian()

    def entries(self, config: SharedSettings) -> dict[str, Any]:
        return {"use_quant_conv": config.use_quant_conv, "use_post_quant_conv": config.use_quant_conv}

    @classmethod
    def from_entries(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        if values["use_quant_conv"] != values["use_post_quant_conv"]:
            raise ValueError("use_quant_conv and use_post_quant_conv: only both or neither is supported")
        return {"bottleneck": cls.name, "use_quant_conv": values["use_quant_conv"]}


@bottleneck("none", source="an autoencoder without a bottleneck")
@dataclass(frozen=True)
class NoneConfig(BottleneckConfig):
    """The encoder's features as they are."""

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.base import Bottleneck

        return Bottleneck()


@bottleneck("bn", source="Zhu et al. 2020, arXiv:2004.12585")
@dataclass(frozen=True)
class BatchNormConfig(BottleneckConfig):
    """Diagonal Gaussian with batch-normalised means."""

    features_per_latent = 2
    has_prior = has_density = True

    mean_scale: float = 0.5
    """bn: standard deviation over the data of every posterior mean; the KL is at least half its square, in nats a
    latent."""

    def __post_init__(self) -> None:
        check_number("mean_scale", self.mean_scale, 0, 1e3, above=True)

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.batch_norm import BatchNormGaussian

        return BatchNormGaussian(config.latent_channels, self.mean_scale)


@bottleneck("vmf", source="Davidson et al. 2018, arXiv:1804.00891")
@dataclass(frozen=True)
class VonMisesFisherConfig(BottleneckConfig):
    """Von Mises-Fisher on a sphere at each position."""

    has_prior = has_density = True

    kappa: float = 50.0
    """vmf: concentration of the posterior around its mean direction; near 0 it is uniform on the sphere."""

    def __post_init__(self) -> None:
        check_number("kappa", self.kappa, 0, 1e4, above=True)

    def check(self, config: SharedSettings) -> None:
        if config.latent_channels < 2:
            raise ValueError(f"latent_channels: expected 2 or more for a sphere (vmf), got {config.latent_channels}")

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.von_mises_fisher import VonMisesFisher

        return VonMisesFisher(config.latent_channels, self.kappa)


@bottleneck("nvae", source="Vahdat and Kautz 2020, arXiv:2007.03898")
@dataclass(frozen=True)
class NVAEConfig(BottleneckConfig):
    """Groups of Gaussians, coarse to fine, each conditioned on those before it."""

    has_prior = has_density = True

    group_levels: int = 2
    """nvae: levels of latents; the finest is the coder's grid, each other is half as fine as the next."""
    groups_per_level: int = 2
    """nvae: groups of latent_channels channels on each level, drawn one after another."""
    group_width: int = 64
    """nvae: channels of the network between the groups."""
    free_bits: float = 1.0
    """nvae: nats of KL a group and image, in the mean over the batch, without a cost; 0: all have their cost."""

    def __post_init__(self) -> None:
        check_int("group_levels", self.group_levels, 1, MAX_LEVELS)
        check_int("groups_per_level", self.groups_per_level, 1, 64)
        check_int("group_width", self.group_width, 1, MAX_WIDTH)
        check_number("free_bits", self.free_bits, 0, 1e6)

    def check(self, config: SharedSettings) -> None:
        check_width("group_width", self.group_width, config)

    def level_channels(self, config: SharedSettings) -> tuple[int, ...]:
        return (config.latent_channels * self.groups_per_level,) * self.group_levels

    def encoder_outputs(self, config: SharedSettings) -> int:
        return self.group_width

    def decoder_inputs(self, config: SharedSettings) -> int:
        return self.group_width

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.nvae import NVAE

        shape = self.group_levels, self.groups_per_level, self.group_width
        return NVAE(*shape, config.latent_channels, config.norm_num_groups, free_bits=self.free_bits)


@bottleneck("identity", source="Ho et al. 2020, arXiv:2006.11239, section 3.3")
@dataclass(frozen=True)
class IdentityConfig(NoneConfig):
    """The latents are the image itself; nothing is learned."""

    class_name = "IdentityAutoencoder"
    own_coder = "none"
    file_defaults: ClassVar[Mapping[str, Any]] = {"in_channels": 3}

    def level_channels(self, config: SharedSettings) -> tuple[int, ...]:
        return (config.in_channels,)


@bottleneck("linear", source="Eckart and Young 1936")
@dataclass(frozen=True)
class LinearConfig(NoneConfig):
    """The principal components of patches, in closed form."""

    class_name = "LinearAutoencoder"
    own_coder = "linear"
    file_defaults: ClassVar[Mapping[str, Any]] = {"in_channels": 3, "latent_channels": 4, "patch_size": 8}

    def check(self, config: SharedSettings) -> None:
        numbers = config.in_channels * config.patch_size**2
        if config.latent_channels > numbers:
            raise ValueError(f"latent_channels: a patch has {numbers} numbers, got {config.latent_channels} components")
