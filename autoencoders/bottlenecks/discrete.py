"""The bottlenecks with codebooks: options, sizes and capabilities. Imports no torch before `build`."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autoencoders.bottlenecks.continuous import MAX_LEVELS, MAX_WIDTH, check_width
from autoencoders.bottlenecks.registry import BottleneckConfig, bottleneck
from autoencoders.settings import SharedSettings, check_bool, check_int, check_number, is_int

_MAX_CODES = 2**22
_MAX_BITS = 22
_CODEBOOK = ("codebook", "codebook_init", "codebook_decay", "commitment_beta", "commitment_on", "revive_after")


@bottleneck("vq", source="van den Oord et al. 2017, arXiv:1711.00937")
@dataclass(frozen=True)
class VQConfig(BottleneckConfig):
    """Nearest vector of a codebook."""

    shared: ClassVar[tuple[str, ...]] = ("num_codes", "code_channels", *_CODEBOOK)
    class_name = "VQModel"
    file_defaults: ClassVar[Mapping[str, Any]] = {
        "latent_channels": 3,
        "num_vq_embeddings": 256,
        "vq_embed_dim": None,
        "norm_type": "group",
        "lookup_from_codebook": False,
    }

    def quant_conv(self, config: SharedSettings) -> bool:
        return True

    def codebook_sizes(self, config: SharedSettings) -> tuple[int, ...]:
        return (config.num_codes,)

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.vector_quantizer import VectorQuantizer

        return VectorQuantizer(config.num_codes, self.level_channels(config)[0], **_learning(config))

    def entries(self, config: SharedSettings) -> dict[str, Any]:
        sizes = {"num_vq_embeddings": config.num_codes, "vq_embed_dim": self.level_channels(config)[0]}
        return {**sizes, "_training": {name: getattr(config, name) for name in _CODEBOOK}}

    @classmethod
    def from_entries(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        stored = values.get("_training", {})
        if not isinstance(stored, dict) or not set(stored) <= set(_CODEBOOK):
            raise ValueError(f"_training: expected an object with {', '.join(_CODEBOOK)}, got {reprlib.repr(stored)}")
        code, latent = values["vq_embed_dim"], values["latent_channels"]
        sizes = {"num_codes": values["num_vq_embeddings"], "code_channels": None if code == latent else code}
        return {"bottleneck": cls.name, **sizes, **stored}


def _learning(config: SharedSettings) -> dict[str, Any]:
    """The options of `VectorQuantizer` for how its codebook learns."""
    return {
        "codebook": config.codebook,
        "codebook_decay": config.codebook_decay,
        "beta": config.commitment_beta,
        "beta_on": config.commitment_on,
        "revive_after": config.revive_after,
    }


@bottleneck("fsq", source="Mentzer et al. 2023, arXiv:2309.15505")
@dataclass(frozen=True)
class FiniteScalarConfig(BottleneckConfig):
    """Each channel rounded to a few levels."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """fsq: levels of each latent channel, 3 or more (for 2 there is lfq); their product is the size of the codebook."""

    def __post_init__(self) -> None:
        if isinstance(self.levels, list):  # from YAML or JSON
            object.__setattr__(self, "levels", tuple(self.levels))
        valid = isinstance(self.levels, tuple) and self.levels and all(is_int(n) and n >= 3 for n in self.levels)
        if not valid or math.prod(self.levels) > _MAX_CODES:
            expected = f"whole numbers from 3, with a product up to {_MAX_CODES}"
            raise ValueError(f"levels: expected {expected}, got {self.levels!r:.80}")

    def check(self, config: SharedSettings) -> None:
        if len(self.levels) != config.latent_channels:
            raise ValueError(
                f"levels: expected latent_channels = {config.latent_channels} numbers, got {len(self.levels)}"
            )

    def codebook_sizes(self, config: SharedSettings) -> tuple[int, ...]:
        return (math.prod(self.levels),)

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.finite_scalar import FiniteScalar

        return FiniteScalar(self.levels)


@bottleneck("lfq", source="Yu et al. 2023, arXiv:2310.05737")
@dataclass(frozen=True)
class LookupFreeConfig(BottleneckConfig):
    """The sign of each channel, one bit."""

    shared = ("commitment_beta",)

    entropy_weight: float = 0.1
    """lfq: weight of the entropy penalty, beside the commitment term."""
    entropy_temperature: float = 1.0
    """lfq: softness of the choice of a code in the entropy penalty; with small values only latents close to 0 count."""

    def __post_init__(self) -> None:
        check_number("entropy_weight", self.entropy_weight, 0, 1e6)
        check_number("entropy_temperature", self.entropy_temperature, 0, 1e3, above=True)

    def check(self, config: SharedSettings) -> None:
        if config.latent_channels > _MAX_BITS:
            raise ValueError(f"latent_channels: expected at most {_MAX_BITS} bits (lfq), got {config.latent_channels}")

    def codebook_sizes(self, config: SharedSettings) -> tuple[int, ...]:
        return (2**config.latent_channels,)

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.lookup_free import LookupFree

        weights = self.entropy_weight, self.entropy_temperature, config.commitment_beta
        return LookupFree(config.latent_channels, *weights)


@bottleneck("gumbel", source="Jang et al. 2017, arXiv:1611.01144")
@dataclass(frozen=True)
class GumbelConfig(BottleneckConfig):
    """A codebook with a relaxed categorical posterior (dVAE)."""

    shared = ("num_codes",)
    has_prior = True

    temperature: float = 1.0
    """gumbel: temperature of the relaxation at the first training step."""
    temperature_end: float = 0.0625
    """gumbel: temperature from step temperature_steps on; the way there is a half cosine."""
    temperature_steps: int = 10_000
    """gumbel: training steps over which the temperature is annealed; 0: it is temperature_end from the start."""
    straight_through: bool = False
    """gumbel: give the decoder one code, with the gradient of the mixture (Jang et al., section 2.2)."""

    def __post_init__(self) -> None:
        for name in ("temperature", "temperature_end"):
            check_number(name, getattr(self, name), 0, 1e3, above=True)
        check_int("temperature_steps", self.temperature_steps, 0, 2**40)
        check_bool("straight_through", self.straight_through)

    def temperature_at(self, step: int) -> float:
        """The temperature at a training step, counted from 0: a half cosine (Ramesh et al., appendix A.2)."""
        done = min(1.0, step / self.temperature_steps) if self.temperature_steps else 1.0
        return self.temperature_end + (self.temperature - self.temperature_end) * (1 + math.cos(math.pi * done)) / 2

    def codebook_sizes(self, config: SharedSettings) -> tuple[int, ...]:
        return (config.num_codes,)

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.gumbel import Gumbel

        return Gumbel(config.num_codes, config.latent_channels, self.temperature_at, self.straight_through)


@bottleneck("cosine_vq", source="Yu et al. 2022, arXiv:2110.04627")
@dataclass(frozen=True)
class CosineVQConfig(VQConfig):
    """Nearest direction of a codebook."""

    class_name = "CosineVQModel"

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.vq_family import CosineQuantizer

        return CosineQuantizer(config.num_codes, self.level_channels(config)[0], **_learning(config))


@bottleneck("product_vq", source="Jegou et al. 2011")
@dataclass(frozen=True)
class ProductVQConfig(VQConfig):
    """A codebook for each group of channels."""

    shared = ("num_codes", "code_channels", "num_quantizers", *_CODEBOOK)
    class_name = "ProductVQModel"
    file_defaults: ClassVar[Mapping[str, Any]] = {**VQConfig.file_defaults, "num_quantizers": 4}

    def check(self, config: SharedSettings) -> None:
        channels = self.level_channels(config)[0]
        if channels % config.num_quantizers:
            raise ValueError(f"num_quantizers: expected a divisor of {channels} channels, got {config.num_quantizers}")

    def indices_per_position(self, config: SharedSettings) -> int:
        return config.num_quantizers

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.vq_family import ProductQuantizer

        sizes = config.num_quantizers, config.num_codes, self.level_channels(config)[0]
        return ProductQuantizer(*sizes, **_learning(config))

    def entries(self, config: SharedSettings) -> dict[str, Any]:
        return {"num_quantizers": config.num_quantizers, **super().entries(config)}

    @classmethod
    def from_entries(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"num_quantizers": values["num_quantizers"], **super().from_entries(values)}


@bottleneck("residual_vq", source="Zeghidour et al. 2021, arXiv:2107.03312")
@dataclass(frozen=True)
class ResidualVQConfig(ProductVQConfig):
    """Several codebooks, each for the residual of those before it."""

    class_name = "ResidualVQModel"

    def check(self, config: SharedSettings) -> None:
        """Any number of codebooks will do."""

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.vq_family import ResidualQuantizer

        sizes = config.num_quantizers, config.num_codes, self.level_channels(config)[0]
        return ResidualQuantizer(*sizes, **_learning(config))


@bottleneck("vqvae2", source="Razavi et al. 2019, arXiv:1906.00446")
@dataclass(frozen=True)
class VQVAE2Config(BottleneckConfig):
    """A codebook for each of several levels, coarse to fine."""

    shared = ("num_codes", *_CODEBOOK)

    code_levels: int = 2
    """vqvae2: levels of codes; the finest is the coder's grid, each other is half as fine as the next."""
    code_width: int = 64
    """vqvae2: channels of the network between the levels."""
    code_dropout: float = 0.0
    """vqvae2: share of the training images whose decoder input has the coarser levels only, so that these hold the
    overall content of an image; 0 (the paper): the finest may hold nearly all, for it can."""

    def __post_init__(self) -> None:
        check_int("code_levels", self.code_levels, 2, MAX_LEVELS)
        check_int("code_width", self.code_width, 1, MAX_WIDTH)
        check_number("code_dropout", self.code_dropout, 0, 1)

    def check(self, config: SharedSettings) -> None:
        check_width("code_width", self.code_width, config)

    def level_channels(self, config: SharedSettings) -> tuple[int, ...]:
        return (config.latent_channels,) * self.code_levels

    def encoder_outputs(self, config: SharedSettings) -> int:
        return self.code_width

    def decoder_inputs(self, config: SharedSettings) -> int:
        return sum(self.level_channels(config))

    def codebook_sizes(self, config: SharedSettings) -> tuple[int, ...]:
        return (config.num_codes,) * self.code_levels

    def build(self, config: SharedSettings) -> Any:
        from autoencoders.bottlenecks.vqvae2 import VQVAE2

        shape = self.code_levels, self.code_width, config.norm_num_groups
        sizes = config.num_codes, config.latent_channels
        return VQVAE2(*shape, *sizes, dropout=self.code_dropout, **_learning(config))
