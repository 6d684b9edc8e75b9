"""The settings of an autoencoder, checked when they are made."""

import reprlib
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

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
_MAX_LEVELS = 8
_MAX_WIDTH = 16384


@dataclass(frozen=True)
class AutoencoderConfig:
    """Architecture and bottleneck of an autoencoder.

    The latents are smaller than the image by the factor 2 ** (len(block_out_channels) - 1) on each side.
    """

    bottleneck: Literal["kl", "vq", "cosine_vq", "product_vq", "residual_vq", "identity", "linear"] = "kl"
    """kl: diagonal Gaussian; vq: codebook; cosine_vq: of directions; product_vq: one for each group of channels;
    residual_vq: several, each for what those before it left over; identity: the latents are the image itself, nothing
    is learned; linear: the principal components of patches, in closed form, without a network."""
    in_channels: int = 3
    """Channels of the image."""
    latent_channels: int = 4
    """Channels of the latents."""
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
    """linear: side of the patches, and so the factor; the image's own side for the components of whole images."""
    use_quant_conv: bool = True
    """kl: 1x1 convolutions around the latents (Stable Diffusion 1 and 2, SDXL: yes; Flux, SD 3: no)."""
    num_codes: int = 512
    """vq: size of the codebook."""
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
    """vq: weight of the commitment term, which draws the encoder to the codes."""
    commitment_on: Literal["encoder", "codebook"] = "encoder"
    """vq: the term that commitment_beta multiplies; codebook: as in taming-transformers and latent-diffusion."""
    revive_after: int = 50
    """vq: a code without a member for so many training steps is put on a random latent of the batch; 0: never."""

    def __post_init__(self) -> None:
        for name in ("block_out_channels", "attention_levels"):
            value = getattr(self, name)
            if isinstance(value, list):  # from YAML or JSON
                object.__setattr__(self, name, tuple(value))
        _check_choices(self)
        _check_numbers(self)
        _check_levels(self)
        if self.codebook == "ema" and self.commitment_on == "codebook":
            raise ValueError('commitment_on="codebook" needs codebook="gradient": an EMA codebook has no loss term')
        if self.code_channels is not None and not self.is_vq:
            raise ValueError(f'code_channels belongs to bottleneck="vq", not "{self.bottleneck}"')
        if self.bottleneck == "product_vq" and self.channels % self.num_quantizers:
            raise ValueError(
                f"num_quantizers: expected a divisor of {self.channels} channels, got {self.num_quantizers}"
            )
        numbers = self.in_channels * self.patch_size**2
        if self.bottleneck == "linear" and self.latent_channels > numbers:
            raise ValueError(f"latent_channels: a patch has {numbers} numbers, got {self.latent_channels} components")

    @property
    def is_vq(self) -> bool:
        """Whether the latents are quantised by codebooks."""
        return self.bottleneck in ("vq", "cosine_vq", "product_vq", "residual_vq")

    @property
    def factor(self) -> int:
        """Image side / latent side."""
        if self.bottleneck == "linear":
            return self.patch_size
        return 1 if self.bottleneck == "identity" else 2 ** (len(self.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """Channels of the latents as `Autoencoder.encode` gives them."""
        if self.bottleneck == "identity":
            return self.in_channels
        return self.code_channels or self.latent_channels


def _check_choices(config: AutoencoderConfig) -> None:
    for field in fields(config):
        choices = get_args(field.type) if get_origin(field.type) is Literal else ()
        value = getattr(config, field.name)
        if choices and value not in choices:
            raise ValueError(f"{field.name}: expected one of {', '.join(choices)}, got {reprlib.repr(value)}")
        if field.type is bool and not isinstance(value, bool):
            raise ValueError(f"{field.name}: expected true or false, got {reprlib.repr(value)}")


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


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
