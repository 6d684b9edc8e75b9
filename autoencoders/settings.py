"""Checks of single settings, and the settings that all bottlenecks and coders share. Imports no torch."""

import reprlib
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

_LIMITS = {  # far above any real model: a config.json is not trusted
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


def is_int(value: object) -> bool:
    """Whether a setting is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a setting is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """`ValueError` that names the setting unless low <= value <= high; with `above`, low < value <= high."""
    valid = is_number(value) and (low < value if above else low <= value) and value <= high  # type: ignore[operator]
    if not valid:
        interval = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected a number {interval}, got {reprlib.repr(value)}")


def check_int(name: str, value: object, low: int, high: int) -> None:
    """`ValueError` that names the setting unless it is a whole number with low <= value <= high."""
    if not is_int(value) or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a whole number from {low} to {high}, got {reprlib.repr(value)}")


def check_bool(name: str, value: object) -> None:
    """`ValueError` that names the setting unless it is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {reprlib.repr(value)}")


@dataclass(frozen=True)
class ViTConfig:
    """Settings of the coder "vit"."""

    vit_width: int = 192
    """vit: channels of a patch inside the transformer; a multiple of 4 and of vit_heads."""
    vit_layers: int = 4
    """vit: blocks in the encoder, and as many in the decoder."""
    vit_heads: int = 3
    """vit: attention heads of a block."""
    vit_mlp_ratio: float = 4.0
    """vit: width of the perceptrons inside the blocks, as a multiple of vit_width."""

    def __post_init__(self) -> None:
        check_int("vit_width", self.vit_width, 4, _MAX_WIDTH)
        check_int("vit_layers", self.vit_layers, 1, 128)
        check_int("vit_heads", self.vit_heads, 1, 1024)
        check_number("vit_mlp_ratio", self.vit_mlp_ratio, 0, 16, above=True)
        if self.vit_width % 4:
            raise ValueError(f"vit_width: expected a multiple of 4 (sine and cosine of 2 axes), got {self.vit_width}")
        if self.vit_width % self.vit_heads:
            raise ValueError(f"vit_heads: expected a divisor of vit_width {self.vit_width}, got {self.vit_heads}")

    @property
    def hidden(self) -> int:
        """Width of the perceptrons."""
        return max(1, round(self.vit_width * self.vit_mlp_ratio))


@dataclass(frozen=True)
class SharedSettings:
    """The settings of an autoencoder that belong to its coders or to several bottlenecks; see `AutoencoderConfig`."""

    bottleneck: str = "kl"
    """kl: diagonal Gaussian; bn: the same, means batch-normalised; vmf: von Mises-Fisher, on a sphere; vq: codebook;
    cosine_vq: of directions; product_vq: one for each group of channels; residual_vq: several, each for the residual
    of those before it; vqvae2: one for each of several levels, coarse to fine; nvae: groups of Gaussians, coarse to
    fine, each conditioned on those before it; fsq: channels rounded to a few levels; lfq: to one bit; gumbel:
    codebook, softly chosen (dVAE); none: a plain autoencoder, the latents are the encoder's output; identity: the
    latents are the image itself, nothing is learned; linear: the principal components of patches, in closed form,
    without a network. One of a plug-in: its name, or with options, such as "mine(size=3)"."""
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
    """Output of the decoder: the image, or a location and a scale for each of its numbers (DALL-E)."""
    use_quant_conv: bool = True
    """kl: 1x1 convolutions around the latents (Stable Diffusion 1 and 2, SDXL: yes; Flux, SD 3: no)."""
    num_codes: int = 512
    """vq, vqvae2, gumbel: size of the codebook, or of each."""
    code_channels: int | None = None
    """vq: channels of a code, and so of the latents, where they differ from latent_channels."""
    num_quantizers: int = 4
    """product_vq, residual_vq: number of codebooks of num_codes each."""
    codebook_init: Literal["random", "data"] = "random"
    """vq: the first codes: near zero, or latents of training images under the untrained encoder."""
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

    def __post_init__(self) -> None:
        for name in ("block_out_channels", "attention_levels"):
            value = getattr(self, name)
            if isinstance(value, list):  # from YAML or JSON
                object.__setattr__(self, name, tuple(value))
        for field in fields(self):
            choices = get_args(field.type) if get_origin(field.type) is Literal else ()
            value = getattr(self, field.name)
            if choices and value not in choices:
                raise ValueError(f"{field.name}: expected one of {', '.join(choices)}, got {reprlib.repr(value)}")
            if field.type is bool:
                check_bool(field.name, value)
            if field.name in _LIMITS and not (value is None and field.default is None):
                check_int(field.name, value, 1, _LIMITS[field.name])
        if not is_number(self.codebook_decay) or not 0 <= self.codebook_decay < 1:
            raise ValueError(f"codebook_decay: expected a number in [0, 1), got {reprlib.repr(self.codebook_decay)}")
        check_number("commitment_beta", self.commitment_beta, 0, 1e6)
        if not is_int(self.revive_after) or self.revive_after < 0:
            raise ValueError(f"revive_after: expected a whole number >= 0, got {reprlib.repr(self.revive_after)}")
        if self.coder == "conv":
            self._check_widths()
        if self.codebook == "ema" and self.commitment_on == "codebook":
            raise ValueError('commitment_on="codebook" needs codebook="gradient": an EMA codebook has no loss term')

    def _check_widths(self) -> None:
        widths, levels = self.block_out_channels, self.attention_levels
        if not isinstance(widths, tuple) or not 1 <= len(widths) <= _MAX_LEVELS:
            raise ValueError(f"block_out_channels: expected 1 to {_MAX_LEVELS} widths, got {reprlib.repr(widths)}")
        for width in widths:
            if not is_int(width) or not 1 <= width <= _MAX_WIDTH or width % self.norm_num_groups:
                expected = f"multiples of norm_num_groups {self.norm_num_groups} up to {_MAX_WIDTH}"
                raise ValueError(f"block_out_channels: expected {expected}, got {width!r}")
        if not isinstance(levels, tuple) or any(not is_int(i) or not 0 <= i < len(widths) for i in levels):
            raise ValueError(f"attention_levels: expected levels from 0 to {len(widths) - 1}, got {levels!r:.80}")
