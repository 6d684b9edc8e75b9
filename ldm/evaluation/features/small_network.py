"""A small convolutional network that is trained on the data set itself: features and a judge where no others exist.

Its task is to predict what the data set knows of its images: the attributes, the class, or, where it knows nothing,
by how many quarter turns the image was rotated (Gidaris et al. 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.weights import weights_fingerprint

ROTATION = "rotation"
CLASS = "class"
_EMBEDDING = 64
_LARGEST = 64  # pixels; larger images are reduced to this side


@dataclass(frozen=True, slots=True)
class NetworkMetadata:
    """What is known about a trained network besides its weights."""

    data_name: str
    image_size: int  # side that the network works at
    heads: Mapping[str, tuple[str, ...]]  # task -> names of its classes
    class_head: str  # the task that stands for the class labels; "" if there are none
    accuracy: Mapping[str, float]  # on held-out images, a task
    images: int  # trained on so many
    held_out: int  # tested on so many


class SmallNetwork(nn.Module):
    """3 x 3 convolutions with maximum pooling, an embedding of the last map's mean and maximum, linear heads."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, image_size: int, heads: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        widths = (16, 32, 64, 64)
        strides = (2 if image_size > 32 else 1, 1, 1, 1)
        stages = [_convolution(*sizes) for sizes in zip((3, *widths[:-1]), widths, strides, strict=True)]
        self.image_size = image_size
        self.stages = nn.ModuleList(stages)
        self.embed = nn.Linear(2 * widths[-1], _EMBEDDING)
        self.tasks = tuple(heads)
        self.heads = nn.ModuleList(nn.Linear(_EMBEDDING, len(values)) for values in heads.values())
        self.dim = sum(widths[:-1]) + _EMBEDDING
        self.register_buffer("feature_mean", torch.zeros(self.dim))
        self.register_buffer("feature_std", torch.ones(self.dim))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, K) a task, for images (B, 3, S, S) in [-1, 1] at the working size."""
        hidden = F.relu(self._run(images)[-1])
        return {task: head(hidden) for task, head in zip(self.tasks, self.heads, strict=True)}

    def features(self, images: Tensor) -> Tensor:
        """(B, dim), standardised: mean activity of the early stages (texture, blur) and the embedding (content)."""
        raw = torch.cat(self._run(images), dim=1)
        return (raw - self.feature_mean) / self.feature_std

    def standardise(self, images: Tensor, batch_size: int = 256) -> None:
        """Set the scale of the features so that each has zero mean and unit deviation on `images`."""
        self.feature_mean.zero_()
        self.feature_std.fill_(1)
        raw = torch.cat([self.features(batch).double().cpu() for batch in images.split(batch_size)])
        self.feature_mean.copy_(raw.mean(0))
        self.feature_std.copy_(raw.std(0).clamp_min(1e-3))

    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return weights_fingerprint(self)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps of each stage for images (B, 3, S, S): (B, width, S / 2^k, S / 2^k), fine to coarse."""
        x = images.contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        return maps

    def _run(self, images: Tensor) -> list[Tensor]:
        maps = self.maps(images)
        means = [x.mean((2, 3)) for x in maps]
        embedding = self.embed(torch.cat([means[-1], maps[-1].amax((2, 3))], dim=1))  # (B, 64)
        return [*means[:-1], embedding]


def working_size(image_size: int) -> int:
    """The side at which the network takes images of this side."""
    return min(image_size, _LARGEST)


def fit_size(images: Tensor, size: int) -> Tensor:
    """Resize images (B, 3, H, W) to (B, 3, size, size), bicubic and antialiased; no change where they fit."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def _convolution(before: int, after: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())
