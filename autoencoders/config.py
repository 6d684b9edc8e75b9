"""The settings of autoencoders, generators, tiling and corruption, checked when they are made. Imports no torch."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from autoencoders.bottlenecks import (
    BatchNormConfig,
    BottleneckConfig,
    FiniteScalarConfig,
    GumbelConfig,
    LookupFreeConfig,
    NVAEConfig,
    VonMisesFisherConfig,
    VQVAE2Config,
    get_bottleneck,
    make_options,
    parse_bottleneck,
)
from autoencoders.bottlenecks.registry import packed_channels
from autoencoders.settings import SharedSettings, ViTConfig, check_bool, check_int, check_number


@dataclass(frozen=True)
class AutoencoderConfig(SharedSettings):
    """Architecture and bottleneck of an autoencoder.

    The latents are smaller than the image by the factor 2 ** (len(block_out_channels) - 1) on each side.
    """

    bn: BatchNormConfig = field(default_factory=BatchNormConfig)
    vmf: VonMisesFisherConfig = field(default_factory=VonMisesFisherConfig)
    fsq: FiniteScalarConfig = field(default_factory=FiniteScalarConfig)
    lfq: LookupFreeConfig = field(default_factory=LookupFreeConfig)
    gumbel: GumbelConfig = field(default_factory=GumbelConfig)
    vqvae2: VQVAE2Config = field(default_factory=VQVAE2Config)
    nvae: NVAEConfig = field(default_factory=NVAEConfig)
    vit: ViTConfig = field(default_factory=ViTConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        options = self.options
        if options.name not in _NAMED_OPTIONS:
            object.__setattr__(self, "bottleneck", str(options))
        if self.decoder_output != "image" and options.own_coder:
            raise ValueError(f"decoder_output: bottleneck {options.name} gives the image, got {self.decoder_output!r}")
        if self.code_channels is not None and "code_channels" not in options.shared:
            raise ValueError(f'code_channels belongs to bottleneck="vq", not "{options.name}"')
        if self.coder == "vit" and options.own_coder:
            raise ValueError(f'coder "vit": bottleneck {options.name} has no encoder; use another')
        options.check(self)

    @cached_property
    def options(self) -> BottleneckConfig:
        """The registered bottleneck with its options."""
        name, values = parse_bottleneck(self.bottleneck)
        if name not in _NAMED_OPTIONS:
            return make_options(get_bottleneck(name), values)
        if values:
            raise ValueError(f"bottleneck {name}: its options are own settings, such as `{next(iter(values))}`")
        return getattr(self, name)

    @property
    def coder_kind(self) -> str:
        """conv or vit; linear or none where the bottleneck has a coder of its own."""
        return self.options.own_coder or self.coder

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of indices at each level, coarse to fine; () for a bottleneck without a codebook."""
        return self.options.codebook_sizes(self)

    @property
    def coder_factor(self) -> int:
        """Image side / side of the encoder's features."""
        if self.coder_kind in ("linear", "vit"):
            return self.patch_size
        return 1 if self.coder_kind == "none" else 2 ** (len(self.block_out_channels) - 1)

    @property
    def factor(self) -> int:
        """Image side / latent side; of a hierarchy, that of the coarsest level, where its latents are packed."""
        return self.coder_factor * 2 ** (len(self.options.level_channels(self)) - 1)

    @property
    def decoder_channels(self) -> int:
        """Numbers that the decoder gives a pixel."""
        return self.in_channels * (2 if self.decoder_output == "logit_laplace" else 1)

    @property
    def channels(self) -> int:
        """Channels of the latents as `Autoencoder.encode` gives them."""
        return packed_channels(self.options.level_channels(self))


_NAMED_OPTIONS = {  # bottlenecks whose options are settings under their name
    entry.name
    for entry in fields(AutoencoderConfig)
    if isinstance(entry.type, type) and issubclass(entry.type, BottleneckConfig)
}


def bottleneck_arguments(config: type[BottleneckConfig], values: object) -> dict[str, Any]:
    """`BottleneckConfig.settings` undone, from untrusted JSON: arguments of `AutoencoderConfig`.

    `ValueError` for an unknown key.
    """
    known = {*config.shared, *(entry.name for entry in fields(config))}  # type: ignore[arg-type]
    if not isinstance(values, Mapping) or not set(values) <= known:
        expected = f"an object with {', '.join(sorted(known))}" if known else "an empty object"
        raise ValueError(f"settings: expected {expected}, got {reprlib.repr(values)}")
    shared = {name: value for name, value in values.items() if name in config.shared}
    options = make_options(config, {name: value for name, value in values.items() if name not in shared})
    if config.name in _NAMED_OPTIONS:
        return {"bottleneck": config.name, config.name: options, **shared}
    return {"bottleneck": str(options), **shared}


@dataclass(frozen=True)
class GeneratorConfig:
    """A decoder that starts from noise; its images have noise_size * 2 ** (len(block_out_channels) - 1) pixels."""

    noise_channels: int = 32
    """Channels of the noise."""
    noise_size: int = 4
    """Side of the noise."""
    block_out_channels: tuple[int, ...] = (32, 64, 128, 128)
    """Width of each level from fine to coarse; each but the first doubles the side once."""
    layers_per_block: int = 1
    """Residual blocks a level, and one more."""
    normalization: Literal["batch", "group"] = "batch"
    """batch: over the images of a forward call (in training, of each process), so that they cannot all become the
    same one (Radford et al. 2016, DCGAN, section 3). group: each image by itself, as autoencoders do."""
    norm_num_groups: int = 8
    """Groups of the group normalisation; must divide every width."""
    attention: bool = True
    """Self-attention at the lowest resolution."""
    out_channels: int = 3
    """Channels of the images."""

    def __post_init__(self) -> None:
        if isinstance(self.block_out_channels, list):  # from YAML or JSON
            object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        # the limits are far above any real model: what a hostile config.json may ask for
        for name, limit in (("noise_channels", 4096), ("noise_size", 64)):
            check_int(name, getattr(self, name), 1, limit)
        check_int("layers_per_block", self.layers_per_block, 0, 32)
        check_int("norm_num_groups", self.norm_num_groups, 1, 1024)
        check_int("out_channels", self.out_channels, 1, 64)
        check_bool("attention", self.attention)
        if self.normalization not in ("batch", "group"):
            raise ValueError(f"normalization: expected batch or group, got {self.normalization!r:.100}")
        widths = self.block_out_channels
        if not isinstance(widths, tuple) or not 1 <= len(widths) <= 8:
            raise ValueError(f"block_out_channels: expected 1 to 8 widths, got {widths!r:.100}")
        for width in widths:
            check_int("block_out_channels", width, 1, 16384)
            if self.normalization == "group" and width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels: expected multiples of norm_num_groups {self.norm_num_groups}, got {width}"
                )

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.noise_size * 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class CorruptionConfig:
    """What is done to a training image before it is encoded; by default nothing."""

    mask_probability: float = 0.0
    """Denoising: probability that a patch of the input is masked."""
    mask_patch: int = 4
    """Denoising: side in pixels of the patches that are masked."""
    noise_std: float = 0.0
    """Denoising: standard deviation of the Gaussian noise on the input, whose range is [-1, 1]."""

    def __post_init__(self) -> None:
        check_number("mask_probability", self.mask_probability, 0, 1)
        check_int("mask_patch", self.mask_patch, 1, 2**16)
        check_number("noise_std", self.noise_std, 0, 1e3)

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        return self.mask_probability > 0 or self.noise_std > 0


@dataclass(frozen=True)
class Tiling:
    """How to save memory in encoding and decoding; by default not at all. `ValueError` for sizes below the limits."""

    slicing: bool = False
    """Encode and decode the images of a batch one by one; with `tile` that is always so."""
    tile: int | None = None
    """Encode and decode in tiles of so many pixels a side, a multiple of the autoencoder's factor; unset: whole."""
    tile_overlap: int = 16
    """Pixels over which neighbouring tiles are blended into each other, a multiple of the factor, at most the tile."""

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise ValueError(f"`tile` must be above 0, got {self.tile}")
        if self.tile_overlap < 0:
            raise ValueError(f"`tile_overlap` must be 0 or more, got {self.tile_overlap}")
        if self.tile is not None and self.tile_overlap > self.tile:
            raise ValueError(f"`tile_overlap` {self.tile_overlap}: expected at most `tile`, which is {self.tile}")

    def check(self, factor: int, coder: str = "conv") -> None:
        """`ValueError` unless tiles of this size fit an autoencoder of this factor, and its coder can be cut at all."""
        if self.tile is None:
            return
        if coder == "vit":
            raise ValueError("`tile`: every patch of a vit coder attends to all others; leave it out, or use `slicing`")
        for name, value in (("`tile`", self.tile), ("`tile_overlap`", self.tile_overlap)):
            if value % factor:
                raise ValueError(f"{name} {value}: expected a multiple of the autoencoder's factor, {factor}")
