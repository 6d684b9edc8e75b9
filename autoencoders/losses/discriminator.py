"""Discriminators: images (B, C, H, W) in [-1, 1] -> logits, large for images classified as real.

Neither has batch normalisation: an image's logit would depend on the batch, a gradient penalty would not be one
(Gulrajani et al. 2017, section 4), and running statistics would be a state that both networks change.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from autoencoders.losses.config import DiscriminatorConfig

_WIDEST = 8  # times the first width
_SLOPE = 0.2
_GROUP = 4  # images that are compared with each other


def make_discriminator(
    config: DiscriminatorConfig, image_size: int, *, in_channels: int = 3, seed: int = 0
) -> nn.Module:
    """A new discriminator with weights drawn from `seed`; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        shape = in_channels, config.discriminator_width, config.discriminator_layers, config.spectral_norm
        if config.discriminator == "patch":
            return PatchDiscriminator(*shape, image_size=image_size)
        return ResidualDiscriminator(*shape, image_size=image_size)


class PatchDiscriminator(nn.Module):
    """Logits (B, 1, h, w), one for each of many overlapping patches (Isola et al. 2017, pix2pix, appendix 6.1.2).

    `layers` convolutions of stride 2, two more of stride 1: 3 layers have a receptive field of 70 x 70 pixels and
    reduce the side by 8; for smaller images, 2 layers have one of 34 x 34 and 1 layer of 16 x 16.
    """

    def __init__(self, in_channels: int, width: int, layers: int, spectral: bool, *, image_size: int) -> None:
        super().__init__()
        if image_size // 2**layers < 4:  # each of the last two convolutions takes a pixel off
            most = max(1, int(math.log2(image_size / 4)))
            raise ValueError(f"discriminator_layers: expected at most {most} for {image_size} pixels, got {layers}")
        widths = [width * min(2**level, _WIDEST) for level in range(layers + 1)]
        kernels = [_kernel(nn.Conv2d(in_channels, width, 4, stride=2, padding=1), spectral), nn.LeakyReLU(_SLOPE)]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            conv = nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=spectral)
            kernels += [_kernel(conv, spectral), *([] if spectral else [nn.GroupNorm(1, widths[level])])]
            kernels.append(nn.LeakyReLU(_SLOPE))
        kernels.append(_kernel(nn.Conv2d(widths[-1], 1, 4, padding=1), spectral))
        self.layers = nn.Sequential(*kernels)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ResidualDiscriminator(nn.Module):
    """One logit an image, (B, 1): the discriminator of StyleGAN 2 (Karras et al. 2020), with average pooling for blur.

    Residual blocks halve the image down to 4 pixels a side at most; the last layers have as input how much images that
    are next to each other in the batch differ (minibatch standard deviation, Karras et al. 2018, section 3).
    """

    def __init__(self, in_channels: int, width: int, layers: int, spectral: bool, *, image_size: int) -> None:
        super().__init__()
        levels = max(0, min(layers, int(math.log2(max(4, image_size) / 4))))
        widths = [width * min(2**level, _WIDEST) for level in range(levels + 1)]
        self.conv_in = _kernel(nn.Conv2d(in_channels, width, 1), spectral)
        self.blocks = nn.ModuleList(_ResidualBlock(before, after, spectral) for before, after in pairwise(widths))
        self.conv_out = _kernel(nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1), spectral)
        side = image_size >> levels
        self.hidden = _kernel(nn.Linear(widths[-1] * side * side, widths[-1]), spectral)
        self.logit = _kernel(nn.Linear(widths[-1], 1), spectral)

    def forward(self, images: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv_in(images), _SLOPE)  # (B, width, H, W)
        for block in self.blocks:
            x = block(x)  # each halves H and W
        x = torch.cat([x, batch_deviation(x)], dim=1)
        x = F.leaky_relu(self.conv_out(x), _SLOPE)
        return self.logit(F.leaky_relu(self.hidden(x.flatten(1)), _SLOPE))


class _ResidualBlock(nn.Module):
    """(B, C, H, W) -> (B, C', H / 2, W / 2): (shortcut + conv(conv)) / sqrt 2."""

    def __init__(self, in_channels: int, out_channels: int, spectral: bool) -> None:
        super().__init__()
        self.conv1 = _kernel(nn.Conv2d(in_channels, in_channels, 3, padding=1), spectral)
        self.conv2 = _kernel(nn.Conv2d(in_channels, out_channels, 3, padding=1), spectral)
        self.shortcut = _kernel(nn.Conv2d(in_channels, out_channels, 1, bias=False), spectral)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), _SLOPE)
        h = F.leaky_relu(self.conv2(F.avg_pool2d(h, 2)), _SLOPE)
        return (self.shortcut(F.avg_pool2d(x, 2)) + h) / math.sqrt(2)


def batch_deviation(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 1, h, w): the mean deviation of the values of up to 4 neighbouring images."""
    size = next(size for size in range(min(_GROUP, len(x)), 0, -1) if len(x) % size == 0)
    groups = x.unflatten(0, (-1, size))  # (B / size, size, C, h, w)
    deviation = (groups.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # (B / size,)
    return deviation.repeat_interleave(size).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])


def _kernel(layer: nn.Conv2d | nn.Linear, spectral: bool) -> nn.Module:
    """Weights of N(0, 0.02^2) for convolutions, as in pix2pix; with `spectral`, spectrally normalised."""
    if isinstance(layer, nn.Conv2d) and not spectral:
        nn.init.kaiming_normal_(layer.weight, _SLOPE)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer) if spectral else layer
