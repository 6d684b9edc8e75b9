"""Perceptual distances of images: in the features of a network, which is an argument; this package has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]  # two batches of images (B, 3, H, W) in [-1, 1] -> (B,)
_TINY = 1e-10


def feature_distance(features: Callable[[Tensor], Sequence[Tensor]], a: Tensor, b: Tensor) -> Tensor:
    """Distance (B,) of two batches of images in the feature maps (B, C, h, w) that `features` gives.

    At each position a map's channels are scaled to length 1; squared differences are summed over the channels, averaged
    over the positions and summed over the maps (Zhang et al. 2018, LPIPS, equation 1 with all weights 1).
    """
    total = a.new_zeros(len(a))
    for one, other in zip(features(a), features(b), strict=True):
        total = total + (_unit(one) - _unit(other)).square().sum(1).mean((1, 2))
    return total


def _unit(maps: Tensor) -> Tensor:
    # the root of a sum of squares has no derivative where all are 0: dead maps are common after a ReLU
    return maps * torch.rsqrt(maps.square().sum(1, keepdim=True) + _TINY)
