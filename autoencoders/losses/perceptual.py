"""How far two pictures are apart in the eyes of a network, which is handed in: this package has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from autoencoders.checks import check_number

Distance = Callable[[Tensor, Tensor], Tensor]  # two batches of images (B, 3, H, W) in [-1, 1] -> (B,)
Perceptual = Literal["none", "lpips", "features"]
_TINY = 1e-10


@dataclass(frozen=True)
class PerceptualConfig:
    """The perceptual term of the loss of an autoencoder."""

    perceptual: Perceptual = "none"
    """lpips: distance in features of a network that knows ImageNet, weighted as people see (needs its weights);
    features: in those of a small network that is trained on the data set itself, once."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance, against the mean error of a pixel."""
    lpips_network: Literal["vgg", "alex"] = "vgg"
    """lpips: the network whose features are compared."""
    lpips_weights: str | None = None
    """lpips: file with the weights of that network; default: torch hub's cache. Nothing is downloaded."""

    def __post_init__(self) -> None:
        if self.perceptual not in get_args(Perceptual):
            raise ValueError(f"perceptual: expected one of {', '.join(get_args(Perceptual))}, got {self.perceptual!r}")
        check_number("perceptual_weight", self.perceptual_weight, 0, 1e6)

    @property
    def active(self) -> bool:
        """Whether there is such a term."""
        return self.perceptual != "none" and self.perceptual_weight > 0

    def facts(self) -> dict[str, Any]:
        """What a resumed run must share; where the weights lie does not change them."""
        network = {"lpips_network": self.lpips_network} if self.perceptual == "lpips" else {}
        return {"perceptual": self.perceptual, "perceptual_weight": self.perceptual_weight, **network}


def feature_distance(features: Callable[[Tensor], Sequence[Tensor]], a: Tensor, b: Tensor) -> Tensor:
    """Distance (B,) of two batches of images in the maps (B, C, h, w) that `features` finds in them.

    At each place a map's channels are scaled to length 1; squared differences are summed over the channels, averaged
    over the places and summed over the maps (Zhang et al. 2018, LPIPS, equation 1 with all weights 1).
    """
    total = a.new_zeros(len(a))
    for one, other in zip(features(a), features(b), strict=True):
        total = total + (_unit(one) - _unit(other)).square().sum(1).mean((1, 2))
    return total


def _unit(maps: Tensor) -> Tensor:
    # the root of a sum of squares has no derivative where all are 0: dead maps are common after a ReLU
    return maps * torch.rsqrt(maps.square().sum(1, keepdim=True) + _TINY)
