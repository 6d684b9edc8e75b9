"""The decoder alone, as a generator of images from noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from autoencoders import storage
from autoencoders.bottlenecks.base import full_precision
from autoencoders.coders.conv import Decoder
from autoencoders.config import GeneratorConfig
from autoencoders.distributed import joint_moments, several_processes

_CLASS = "Generator"


class Generator(nn.Module):
    """Noise (B, noise_channels, noise_size, noise_size) of N(0, 1) -> images (B, C, H, W) in [-1, 1].

    With batch normalisation an image depends on its own noise alone in evaluation mode, not in training.
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
            for module in list(self.modules()):
                if isinstance(module, nn.Conv2d):
                    _init_variance_preserving(module)
                elif config.normalization == "batch":
                    for name, norm in list(module.named_children()):
                        if isinstance(norm, nn.GroupNorm):
                            setattr(module, name, _BatchNorm(norm.num_channels))

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the noise of one image."""
        return self.config.noise_channels, self.config.noise_size, self.config.noise_size

    def forward(self, noise: Tensor) -> Tensor:
        if noise.shape[1:] != self.noise_shape:
            raise ValueError(f"noise: expected (B, {', '.join(map(str, self.noise_shape))}), got {tuple(noise.shape)}")
        return torch.tanh(self.decoder(noise))

    @torch.no_grad()
    def recalibrate_batch_norm(self, noise: Sequence[Tensor]) -> None:
        """Set the statistics of batch normalisation to the means over these batches of noise (B, C, h, w).

        Those of training belong to earlier weights, and averaged weights have none of their own
        (standing statistics: Brock et al. 2019, BigGAN).
        """
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
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
        storage.write(path, {"_class_name": _CLASS, **entries}, tensors)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Generator:
        """Read such a folder, in evaluation mode; `ValueError` names what does not fit, before memory is taken."""
        entries = storage.read_json(Path(path) / storage.CONFIG_NAME)
        try:
            config = _config_of(entries)
        except ValueError as error:
            raise ValueError(f"{Path(path) / storage.CONFIG_NAME}: {error}") from None
        with torch.device("meta"):
            expected = cls(config).state_dict()
        tensors = storage.read_tensors(path, expected)
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
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum)

    def _jointly(self, x: Tensor) -> Tensor:
        mean, var = joint_moments(full_precision(x))
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(var.detach() * count / (count - 1), self.momentum)
        gain = self.weight * torch.rsqrt(var + 1e-5)
        return ((x - mean[:, None, None]) * gain[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def _init_variance_preserving(layer: nn.Conv2d) -> None:
    """Weights that keep the variance, and no bias.

    The initial weights of autoencoders shrink their input and add constants, so that all noise gives nearly the same
    image at first.
    """
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _config_of(entries: dict[str, Any]) -> GeneratorConfig:
    if entries.get("_class_name") != _CLASS:
        raise ValueError(f"_class_name: expected {_CLASS}, got {entries.get('_class_name')!r:.100}")
    values = {name: value for name, value in entries.items() if not name.startswith("_")}
    unknown = sorted(set(values) - {entry.name for entry in fields(GeneratorConfig)})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r:.100} for {_CLASS}")
    return GeneratorConfig(**values)
