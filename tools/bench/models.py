"""The networks of the rows: shipped settings with weights of an effect everywhere, in both libraries."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ldm.models.unet import UNet, UNetConfig
from ldm.runtime.settings import find_config, read_settings
from ldm.training.tasks.settings import DiffusionRun
from tools.bench.row import Benchmark

TEXT_WIDTH, TEXT_LENGTH, CLASSES = 64, 16, 10


@dataclass(frozen=True)
class Networks:
    """One U-Net in both libraries, with inputs of a batch; `moved` is the bytes of weights, inputs and output."""

    ours: UNet
    theirs: Any  # UNet2DConditionModel
    x: Tensor
    t: Tensor
    labels: Tensor | None
    context: Tensor | None
    moved: float

    def run_ours(self) -> Tensor:
        return self.ours(self.x, self.t, class_labels=self.labels, context=self.context)

    def run_theirs(self) -> Tensor:
        return self.theirs(self.x, self.t, self.context, class_labels=self.labels).sample


def settings(name: str) -> DiffusionRun:
    """The settings of a shipped configuration."""
    return read_settings(DiffusionRun, find_config(f"{name}/diffusion"))


def shape_of(name: str) -> UNetConfig:
    """The U-Net of the quick start (text, 8 x 4 x 4), of CIFAR-10 on a CPU (classes, 8 x 8 x 8) or on a GPU."""
    if name == "quickstart":
        changes: dict[str, Any] = {"sample_size": 4, "in_channels": 8, "cross_attention_dim": TEXT_WIDTH}
        return dataclasses.replace(settings("quickstart").unet, out_channels=8, **changes)
    on_gpu = name == "cifar10-gpu"
    config = read_settings(DiffusionRun, find_config(f"cifar10/{'diffusion' if on_gpu else 'diffusion-cpu'}"))
    changes = {"sample_size": 16, "in_channels": 4} if on_gpu else {"sample_size": 8, "in_channels": 8}
    changes |= {"num_class_embeds": CLASSES + 1}
    return dataclasses.replace(config.unet, out_channels=changes["in_channels"], **changes)


def fill(network: nn.Module) -> None:
    """Weights of an effect everywhere: at its start a U-Net's output is 0, and its parity would mean nothing."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if not parameter.any():
            scale = 0.1 if parameter.ndim == 1 else 0.5 * parameter[0].numel() ** -0.5
            parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
        assert parameter.any(), name


def networks(benchmark: Benchmark, name: str, batch: int, *, train: bool = False) -> Networks:
    """Ours is written to a folder, and theirs read from it: the same weights, with no conversion."""
    config = shape_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = UNet(config)
    fill(ours)
    folder = benchmark.folder()
    ours.save_pretrained(folder)
    theirs = UNet2DConditionModel.from_pretrained(folder)
    benchmark.compiled(ours.train(train).to(memory_format=torch.channels_last))
    benchmark.compiled(theirs.train(train))
    x = benchmark.randn(batch, config.in_channels, config.sample_size or 1, config.sample_size or 1)
    t = torch.linspace(1, 998, batch, device=benchmark.device).round()
    labels = torch.arange(batch, device=benchmark.device) % CLASSES if config.num_class_embeds else None
    context = benchmark.randn(batch, TEXT_LENGTH, TEXT_WIDTH) if config.cross_attention_dim else None
    moved = 4.0 * (sum(weight.numel() for weight in ours.parameters()) + 2 * x.numel())
    return Networks(ours, theirs, x, t, labels, context, moved)
