"""The decoder alone, as a generator of pictures from noise."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders import folder
from autoencoders.checks import check_bool, check_int
from autoencoders.coder import Decoder

_CLASS = "Generator"


@dataclass(frozen=True)
class GeneratorConfig:
    """A decoder that starts from noise; its pictures have noise_size * 2 ** (len(block_out_channels) - 1) pixels."""

    noise_channels: int = 32
    """Channels of the noise."""
    noise_size: int = 4
    """Side of the noise."""
    block_out_channels: tuple[int, ...] = (32, 64, 128, 128)
    """Width of each level from fine to coarse; each but the first doubles the side once."""
    layers_per_block: int = 1
    """Residual blocks a level, and one more."""
    norm_num_groups: int = 8
    """Groups of the group normalisation; must divide every width."""
    attention: bool = True
    """Self-attention at the lowest resolution."""
    out_channels: int = 3
    """Channels of the pictures."""

    def __post_init__(self) -> None:
        if isinstance(self.block_out_channels, list):  # from YAML or JSON
            object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        # the limits are far above any real model: what a hostile config.json may ask for
        for name, limit in (("noise_channels", 4096), ("noise_size", 64), ("layers_per_block", 32)):
            check_int(name, getattr(self, name), 1, limit)
        check_int("norm_num_groups", self.norm_num_groups, 1, 1024)
        check_int("out_channels", self.out_channels, 1, 64)
        check_bool("attention", self.attention)
        widths = self.block_out_channels
        if not isinstance(widths, tuple) or not 1 <= len(widths) <= 8:
            raise ValueError(f"block_out_channels: expected 1 to 8 widths, got {widths!r:.100}")
        for width in widths:
            check_int("block_out_channels", width, 1, 16384)
            if width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels: expected multiples of norm_num_groups {self.norm_num_groups}, got {width}"
                )

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return self.noise_size * 2 ** (len(self.block_out_channels) - 1)


class Generator(nn.Module):
    """Noise (B, noise_channels, noise_size, noise_size) of N(0, 1) -> pictures (B, C, H, W) in [-1, 1]."""

    def __init__(self, config: GeneratorConfig, *, seed: int = 0) -> None:
        """Make a new generator with weights drawn from `seed`; the global random state stays as it was."""
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.decoder = Decoder(
                config.noise_channels,
                config.out_channels,
                config.block_out_channels,
                config.layers_per_block,
                config.norm_num_groups,
                config.attention,
            )

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the noise of one picture."""
        return self.config.noise_channels, self.config.noise_size, self.config.noise_size

    def forward(self, noise: Tensor) -> Tensor:
        if noise.shape[1:] != self.noise_shape:
            raise ValueError(f"noise: expected (B, {', '.join(map(str, self.noise_shape))}), got {tuple(noise.shape)}")
        return torch.tanh(self.decoder(noise))

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors into a folder."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        entries = json.loads(json.dumps(asdict(self.config)))
        folder.write(path, {"_class_name": _CLASS, **entries}, tensors)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Generator:
        """Read such a folder, in evaluation mode; `ValueError` names what does not fit, before memory is taken."""
        entries = folder.read_json(Path(path) / folder.CONFIG_NAME)
        try:
            config = _config_of(entries)
        except ValueError as error:
            raise ValueError(f"{Path(path) / folder.CONFIG_NAME}: {error}") from None
        with torch.device("meta"):
            expected = cls(config).state_dict()
        tensors = folder.read_tensors(path, {name: tuple(tensor.shape) for name, tensor in expected.items()})
        model = cls(config)
        model.load_state_dict(tensors)
        return model.eval()


def _config_of(entries: dict[str, Any]) -> GeneratorConfig:
    if entries.get("_class_name") != _CLASS:
        raise ValueError(f"_class_name: expected {_CLASS}, got {entries.get('_class_name')!r:.100}")
    values = {name: value for name, value in entries.items() if not name.startswith("_")}
    unknown = sorted(set(values) - {each.name for each in fields(GeneratorConfig)})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r:.100} for {_CLASS}")
    return GeneratorConfig(**values)
