"""The decoder alone, as a generator of pictures from noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from autoencoders import storage as folder
from autoencoders.bottlenecks.base import full_precision
from autoencoders.checks import check_bool, check_int
from autoencoders.coders.conv import Decoder
from autoencoders.distributed import joint_moments, several_processes

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
    normalization: Literal["batch", "group"] = "batch"
    """batch: over the pictures of a forward call (in training, of each process), so that they cannot all become the
    same one (Radford et al. 2016, DCGAN, section 3). group: each picture by itself, as autoencoders do."""
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
        """Side of the pictures in pixels."""
        return self.noise_size * 2 ** (len(self.block_out_channels) - 1)


class Generator(nn.Module):
    """Noise (B, noise_channels, noise_size, noise_size) of N(0, 1) -> pictures (B, C, H, W) in [-1, 1].

    With batch normalisation a picture depends on its own noise alone in evaluation mode, not in training.
    """

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
                config.norm_num_groups if config.normalization == "group" else 1,
                config.attention,
            )
            for part in list(self.modules()):
                if isinstance(part, nn.Conv2d):
                    _hears_its_input(part)
                elif config.normalization == "batch":
                    for name, norm in list(part.named_children()):
                        if isinstance(norm, nn.GroupNorm):
                            setattr(part, name, _BatchNorm(norm.num_channels))

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the noise of one picture."""
        return self.config.noise_channels, self.config.noise_size, self.config.noise_size

    def forward(self, noise: Tensor) -> Tensor:
        if noise.shape[1:] != self.noise_shape:
            raise ValueError(f"noise: expected (B, {', '.join(map(str, self.noise_shape))}), got {tuple(noise.shape)}")
        return torch.tanh(self.decoder(noise))

    @torch.no_grad()
    def recalibrate_batch_norm(self, noise: Sequence[Tensor]) -> None:
        """Set the statistics of batch normalisation to the means over these batches of noise (B, C, h, w).

        Those gathered in training are of weights that have moved since, and averaged weights have none of their own
        (standing statistics: Brock et al. 2019, BigGAN).
        """
        norms = [part for part in self.modules() if isinstance(part, _BatchNorm)]
        training = self.training
        self.train()
        for count, batch in enumerate(noise if norms else (), start=1):
            for norm in norms:
                norm.momentum, norm.joint = 1 / count, False
            self(batch)
        for norm in norms:
            norm.momentum, norm.joint = _BatchNorm.momentum, True
        self.train(training)

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


class _BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) of (B, C, h, w); torch's also counts batches, in whole numbers."""

    running_mean: Tensor
    running_var: Tensor
    momentum = 0.1
    joint = True  # in training: with the batches of all processes

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.joint and several_processes():
            return self._jointly(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum
        )

    def _jointly(self, x: Tensor) -> Tensor:
        mean, var = joint_moments(full_precision(x))
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(var.detach() * count / (count - 1), self.momentum)
        gain = self.weight * torch.rsqrt(var + 1e-5)
        return ((x - mean[:, None, None]) * gain[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def _hears_its_input(layer: nn.Conv2d) -> None:
    """Weights that keep the variance, and no bias.

    Those that autoencoders start from shrink what comes in and add constants, so that all noise gives nearly the same
    picture at first.
    """
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _config_of(entries: dict[str, Any]) -> GeneratorConfig:
    if entries.get("_class_name") != _CLASS:
        raise ValueError(f"_class_name: expected {_CLASS}, got {entries.get('_class_name')!r:.100}")
    values = {name: value for name, value in entries.items() if not name.startswith("_")}
    unknown = sorted(set(values) - {each.name for each in fields(GeneratorConfig)})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r:.100} for {_CLASS}")
    return GeneratorConfig(**values)
