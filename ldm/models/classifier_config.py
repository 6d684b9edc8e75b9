"""The shape of a noisy classifier."""

from dataclasses import dataclass, fields
from typing import Literal

from ldm.models.unet_config import UNetConfig
from ldm.runtime.errors import UserError


@dataclass(frozen=True)
class ClassifierConfig:
    """The shape of a noisy classifier. Tuples hold one entry a level, from the highest resolution down."""

    sample_size: int = 32
    """Height and width; fixed, because the pooling has learned positions."""
    in_channels: int = 4
    num_classes: int = 10
    block_out_channels: tuple[int, ...] = (64, 128, 256)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (False, True, True)
    attention_head_dim: int = 32
    """Width of an attention head; also the number of heads of the middle, as in the U-Net."""
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "scale_shift"
    norm_num_groups: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        encoder = self.encoder()  # checks the shared entries
        for name in ("block_out_channels", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON and YAML bring lists
        if not 2 <= self.num_classes <= 2**20:
            raise UserError(f"classifier: num_classes: expected at least 2, got {self.num_classes}")
        if self.sample_size % encoder.factor or not 1 <= self.sample_size <= 4096:
            raise UserError(f"classifier: sample_size: expected a multiple of {encoder.factor}, got {self.sample_size}")
        width = self.block_out_channels[-1]
        if width % self.attention_head_dim:
            expected = f"expected a divisor of the last width {width}, got {self.attention_head_dim}"
            raise UserError(f"classifier: attention_head_dim: {expected}")

    def encoder(self) -> UNetConfig:
        """The U-Net whose encoder this is."""
        shared = {field.name for field in fields(UNetConfig)} & {field.name for field in fields(self)}
        return UNetConfig(**{name: getattr(self, name) for name in shared})
