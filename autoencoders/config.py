"""The settings of an autoencoder, checked when they are made."""

import math
import reprlib
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from autoencoders.bottlenecks.batch_norm import BatchNormConfig
from autoencoders.bottlenecks.finite_scalar import FiniteScalarConfig
from autoencoders.bottlenecks.gumbel import GumbelConfig
from autoencoders.bottlenecks.hierarchy import packed_channels
from autoencoders.bottlenecks.lookup_free import MAX_BITS, LookupFreeConfig
from autoencoders.bottlenecks.nvae import NVAEConfig
from autoencoders.bottlenecks.von_mises_fisher import VonMisesFisherConfig
from autoencoders.bottlenecks.vqvae2 import VQVAE2Config
from autoencoders.checks import is_int as _is_int
from autoencoders.checks import is_number as _is_number
from autoencoders.coders.vit import ViTConfig

_LIMITS = {  # far above any real model: what a hostile config.json may ask for
    "in_channels": 64,
    "latent_channels": 4096,
    "layers_per_block": 32,
    "norm_num_groups": 1024,
    "num_codes": 2**22,
    "code_channels": 4096,
    "num_quantizers": 64,
    "sample_size": 2**16,
    "patch_size": 64,  # a covariance of 12288 x 12288 takes 1.2 GB
}
TRAINING_KEYS = ("codebook", "codebook_init", "codebook_decay", "commitment_beta", "commitment_on", "revive_after")
# What the folder of an autoencoder that diffusers has not says of its bottleneck:
_OWN_SETTINGS: dict[str, type[Any]] = {  # the field of its own name
    "bn": BatchNormConfig,
    "vmf": VonMisesFisherConfig,
    "fsq": FiniteScalarConfig,
    "lfq": LookupFreeConfig,
    "gumbel": GumbelConfig,
    "vqvae2": VQVAE2Config,
    "nvae": NVAEConfig,
}
_SHARED_SETTINGS: dict[str, tuple[str, ...]] = {  # which of the others it obeys
    "kl": ("use_quant_conv",),
    "lfq": ("commitment_beta",),
    "gumbel": ("num_codes",),
    "vqvae2": ("num_codes", *TRAINING_KEYS),
    **dict.fromkeys(("vq", "cosine_vq"), ("num_codes", "code_channels", *TRAINING_KEYS)),
    **dict.fromkeys(("product_vq", "residual_vq"), ("num_codes", "code_channels", "num_quantizers", *TRAINING_KEYS)),
}
_MAX_LEVELS = 8
_MAX_WIDTH = 16384


@dataclass(frozen=True)
class AutoencoderConfig:
    """Architecture and bottleneck of an autoencoder.

    The latents are smaller than the image by the factor 2 ** (len(block_out_channels) - 1) on each side.
    """

    bottleneck: Literal[
        "kl",
        "vq",
        "none",
        "bn",
        "vmf",
        "fsq",
        "lfq",
        "gumbel",
        "cosine_vq",
        "product_vq",
        "residual_vq",
        "vqvae2",
        "nvae",
        "identity",
        "linear",
    ] = "kl"
    """kl: diagonal Gaussian; bn: the same, means batch-normalised; vmf: von Mises-Fisher, on a sphere; vq: codebook;
    cosine_vq: of directions; product_vq: one for each group of channels; residual_vq: several, each for what those
    before it left over; vqvae2: one for each of several levels, coarse to fine; nvae: groups of Gaussians, coarse to
    fine, each given those before it; fsq: channels rounded to a few levels; lfq: to one bit; gumbel: codebook, softly
    chosen (dVAE); none: a plain autoencoder, the latents are what the encoder gives; identity: the latents are the
    image itself, nothing is learned; linear: the principal components of patches, in closed form, without a network."""
    coder: Literal["conv", "vit"] = "conv"
    """The encoder and the decoder: conv, residual convolutions; vit, a transformer on patches."""
    in_channels: int = 3
    """Channels of the image."""
    latent_channels: int = 4
    """Channels of the latents; vqvae2: of a code on each level; nvae: of each group."""
    block_out_channels: tuple[int, ...] = (32, 64)
    """Width of each level from fine to coarse; 1, 2, 3, 4 levels give the factors 1, 2, 4, 8."""
    layers_per_block: int = 1
    """Residual blocks a level in the encoder; the decoder has one more."""
    norm_num_groups: int = 8
    """Groups of the group normalisation; must divide every width."""
    attention: bool = True
    """Self-attention in the middle, at the lowest resolution."""
    attention_levels: tuple[int, ...] = ()
    """Levels (0 is the finest) with attention after every residual block."""
    sample_size: int | None = None
    """Side of the training images in pixels, for other programs that read the saved folder."""
    patch_size: int = 8
    """linear, vit: side of the patches, and so the factor; linear: the image's own side for the components of whole
    images."""
    decoder_output: Literal["image", "logit_laplace"] = "image"
    """What the decoder gives: the image, or a location and a scale for each of its numbers (DALL-E)."""
    use_quant_conv: bool = True
    """kl: 1x1 convolutions around the latents (Stable Diffusion 1 and 2, SDXL: yes; Flux, SD 3: no)."""
    num_codes: int = 512
    """vq, vqvae2, gumbel: size of the codebook, or of each."""
    code_channels: int | None = None
    """vq: channels of a code, and so of the latents, where they differ from latent_channels."""
    num_quantizers: int = 4
    """product_vq, residual_vq: how many codebooks of num_codes each."""
    codebook_init: Literal["random", "data"] = "random"
    """vq: how the codes begin: near zero, or as latents of training images under the untrained encoder."""
    codebook: Literal["gradient", "ema"] = "ema"
    """vq: how the codebook learns: by its own loss term, or as running means of its members."""
    codebook_decay: float = 0.99
    """vq: decay of the running means of an EMA codebook."""
    commitment_beta: float = 0.25
    """vq, lfq: weight of the commitment term, which draws the encoder to the codes."""
    commitment_on: Literal["encoder", "codebook"] = "encoder"
    """vq: the term that commitment_beta multiplies; codebook: as in taming-transformers and latent-diffusion."""
    revive_after: int = 50
    """vq: a code without a member for so many training steps is put on a random latent of the batch; 0: never."""
    bn: BatchNormConfig = field(default_factory=BatchNormConfig)
    vmf: VonMisesFisherConfig = field(default_factory=VonMisesFisherConfig)
    fsq: FiniteScalarConfig = field(default_factory=FiniteScalarConfig)
    lfq: LookupFreeConfig = field(default_factory=LookupFreeConfig)
    gumbel: GumbelConfig = field(default_factory=GumbelConfig)
    vqvae2: VQVAE2Config = field(default_factory=VQVAE2Config)
    nvae: NVAEConfig = field(default_factory=NVAEConfig)
    vit: ViTConfig = field(default_factory=ViTConfig)

    def __post_init__(self) -> None:
        for name in ("block_out_channels", "attention_levels"):
            value = getattr(self, name)
            if isinstance(value, list):  # from YAML or JSON
                object.__setattr__(self, name, tuple(value))
        _check_choices(self)
        _check_numbers(self)
        if self.coder == "conv":
            _check_levels(self)
        if self.codebook == "ema" and self.commitment_on == "codebook":
            raise ValueError('commitment_on="codebook" needs codebook="gradient": an EMA codebook has no loss term')
        if self.decoder_output != "image" and self.bottleneck in ("identity", "linear"):
            raise ValueError(
                f'decoder_output: bottleneck "{self.bottleneck}" gives the image itself, got {self.decoder_output!r}'
            )
        if self.code_channels is not None and not self.is_vq:
            raise ValueError(f'code_channels belongs to bottleneck="vq", not "{self.bottleneck}"')
        if self.bottleneck == "fsq" and len(self.fsq.levels) != self.latent_channels:
            expected = f"latent_channels = {self.latent_channels} numbers"
            raise ValueError(f"levels: expected {expected}, got {len(self.fsq.levels)}")
        if self.bottleneck == "lfq" and self.latent_channels > MAX_BITS:
            raise ValueError(f"latent_channels: expected at most {MAX_BITS} bits (lfq), got {self.latent_channels}")
        if self.bottleneck == "vmf" and self.latent_channels < 2:
            raise ValueError(f"latent_channels: expected 2 or more for a sphere (vmf), got {self.latent_channels}")
        if self.bottleneck == "product_vq" and self.channels % self.num_quantizers:
            raise ValueError(
                f"num_quantizers: expected a divisor of {self.channels} channels, got {self.num_quantizers}"
            )
        _check_hierarchy(self)
        if self.coder == "vit" and self.bottleneck in ("identity", "linear"):
            raise ValueError(f'coder "vit": bottleneck {self.bottleneck} has no encoder; use another')
        numbers = self.in_channels * self.patch_size**2
        if self.bottleneck == "linear" and self.latent_channels > numbers:
            raise ValueError(f"latent_channels: a patch has {numbers} numbers, got {self.latent_channels} components")

    @property
    def is_vq(self) -> bool:
        """Whether the latents are quantised by codebooks."""
        return self.bottleneck in ("vq", "cosine_vq", "product_vq", "residual_vq")

    @property
    def has_codebook(self) -> bool:
        """Whether there are codes that `Autoencoder.initialise_codebook` may put on latents."""
        return self.is_vq or self.bottleneck == "vqvae2"

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes there are at each level, coarse to fine; () for a bottleneck without codes."""
        sizes = {"fsq": math.prod(self.fsq.levels), "lfq": 2**self.latent_channels}
        has_codes = self.has_codebook or self.bottleneck in ("fsq", "lfq", "gumbel")
        return (sizes.get(self.bottleneck, self.num_codes),) * len(self.level_channels) if has_codes else ()

    @property
    def coder_factor(self) -> int:
        """Image side / side of the encoder's features."""
        if self.bottleneck == "linear" or self.coder == "vit":
            return self.patch_size
        return 1 if self.bottleneck == "identity" else 2 ** (len(self.block_out_channels) - 1)

    @property
    def factor(self) -> int:
        """Image side / latent side; of a hierarchy, that of the coarsest level, where its latents are packed."""
        return self.coder_factor * 2 ** (len(self.level_channels) - 1)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of the latents at each level, coarse to fine; one level but for the hierarchies."""
        if self.bottleneck == "identity":
            return (self.in_channels,)
        if self.bottleneck == "vqvae2":
            return (self.latent_channels,) * self.vqvae2.code_levels
        if self.bottleneck == "nvae":
            return (self.latent_channels * self.nvae.groups_per_level,) * self.nvae.group_levels
        return (self.code_channels or self.latent_channels,)

    @property
    def decoder_channels(self) -> int:
        """Numbers that the decoder gives a pixel."""
        return self.in_channels * (2 if self.decoder_output == "logit_laplace" else 1)

    @property
    def channels(self) -> int:
        """Channels of the latents as `Autoencoder.encode` gives them."""
        return packed_channels(self.level_channels)

    @property
    def decoder_inputs(self) -> int:
        """Channels of what the bottleneck gives the decoder."""
        if self.bottleneck == "vqvae2":
            return sum(self.level_channels)
        return self.nvae.group_width if self.bottleneck == "nvae" else self.latent_channels


def own_settings(config: AutoencoderConfig) -> dict[str, Any]:
    """What the bottleneck is told by the dataclass of its own name and by the shared settings that it obeys."""
    own = {name: getattr(config, name) for name in _SHARED_SETTINGS.get(config.bottleneck, ())}
    if config.bottleneck in _OWN_SETTINGS:
        own |= asdict(getattr(config, config.bottleneck))
    return own


def settings_of(bottleneck: str, values: object) -> dict[str, Any]:
    """`own_settings` undone, from untrusted JSON: arguments of `AutoencoderConfig`; `ValueError` for another key."""
    shared = _SHARED_SETTINGS.get(bottleneck, ())
    schema = _OWN_SETTINGS.get(bottleneck)
    known = {*shared, *(each.name for each in (fields(schema) if schema else ()))}
    if not isinstance(values, dict) or not set(values) <= known:
        expected = f"an object with {', '.join(sorted(known))}" if known else "an empty object"
        raise ValueError(f"settings: expected {expected}, got {reprlib.repr(values)}")
    taken: dict[str, Any] = {name: value for name, value in values.items() if name in shared}
    if schema:
        taken[bottleneck] = schema(**{name: value for name, value in values.items() if name not in shared})
    return taken


def _check_choices(config: AutoencoderConfig) -> None:
    for each in fields(config):
        choices = get_args(each.type) if get_origin(each.type) is Literal else ()
        value = getattr(config, each.name)
        if choices and value not in choices:
            raise ValueError(f"{each.name}: expected one of {', '.join(choices)}, got {reprlib.repr(value)}")
        if each.type is bool and not isinstance(value, bool):
            raise ValueError(f"{each.name}: expected true or false, got {reprlib.repr(value)}")


def _check_numbers(config: AutoencoderConfig) -> None:
    for name, limit in _LIMITS.items():
        value = getattr(config, name)
        if value is None and name in ("code_channels", "sample_size"):
            continue
        if not _is_int(value) or not 1 <= value <= limit:
            raise ValueError(f"{name}: expected a whole number from 1 to {limit}, got {reprlib.repr(value)}")
    if not _is_number(config.codebook_decay) or not 0 <= config.codebook_decay < 1:
        raise ValueError(f"codebook_decay: expected a number in [0, 1), got {reprlib.repr(config.codebook_decay)}")
    if not _is_number(config.commitment_beta) or not 0 <= config.commitment_beta <= 1e6:
        raise ValueError(
            f"commitment_beta: expected a number from 0 to 1e6, got {reprlib.repr(config.commitment_beta)}"
        )
    if not _is_int(config.revive_after) or config.revive_after < 0:
        raise ValueError(f"revive_after: expected a whole number >= 0, got {reprlib.repr(config.revive_after)}")


def _check_hierarchy(config: AutoencoderConfig) -> None:
    widths = {"vqvae2": ("code_width", config.vqvae2.code_width), "nvae": ("group_width", config.nvae.group_width)}
    name, width = widths.get(config.bottleneck, ("", 0))
    if width % config.norm_num_groups:
        raise ValueError(f"{name}: expected a multiple of norm_num_groups {config.norm_num_groups}, got {width}")


def _check_levels(config: AutoencoderConfig) -> None:
    widths = config.block_out_channels
    if not isinstance(widths, tuple) or not 1 <= len(widths) <= _MAX_LEVELS:
        raise ValueError(f"block_out_channels: expected 1 to {_MAX_LEVELS} widths, got {reprlib.repr(widths)}")
    for width in widths:
        if not _is_int(width) or not 1 <= width <= _MAX_WIDTH or width % config.norm_num_groups:
            raise ValueError(
                f"block_out_channels: expected multiples of norm_num_groups {config.norm_num_groups} "
                f"up to {_MAX_WIDTH}, got {width!r}"
            )
    levels = config.attention_levels
    if not isinstance(levels, tuple) or any(not _is_int(i) or not 0 <= i < len(widths) for i in levels):
        raise ValueError(f"attention_levels: expected levels from 0 to {len(widths) - 1}, got {reprlib.repr(levels)}")
