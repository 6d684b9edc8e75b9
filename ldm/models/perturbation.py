"""Layers of the U-Net degraded on purpose, in some samples of a batch, for the guidances that steer away from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["identity", "blur", "skip"]


@dataclass(frozen=True)
class Perturbation:
    """`kind` of change to the modules `layers`, named as in the state dict.

    identity: each token attends to itself alone (PAG, Ahn et al. 2024, arXiv:2403.17377, eq. 14). blur: the queries are
    blurred over the (h, w) grid of tokens by a Gaussian of standard deviation `sigma` tokens; infinite, the default:
    all become their mean (SEG, Hong 2024, arXiv:2408.00760, section 4). skip: the residual layer's output is its input.
    """

    kind: Kind
    layers: tuple[str, ...]
    sigma: float = math.inf

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError(f"perturbation {self.kind}: expected one layer or more")
        if not self.sigma > 0:  # false for NaN too
            raise ValueError(f"perturbation blur: sigma must be above 0, in tokens; got {self.sigma}")


@dataclass
class LayerPerturbation:
    """What is done to one layer: for each kind the samples (B,) in which it is done."""

    aspect: float  # height / width of x, and so of every grid of tokens
    masks: dict[Kind, Tensor] = field(default_factory=dict)
    sigma: float = math.inf

    def queries(self, q: Tensor) -> Tensor:
        """q (B, heads, N, d), blurred where the kind is blur."""
        return self._where("blur", lambda: blur_queries(q, self.sigma, self.aspect), q)

    def attention_output(self, v: Tensor, output: Tensor) -> Tensor:
        """The output of the attention (B, heads, N, d), and the values v where its map is the identity."""
        return self._where("identity", lambda: v, output)

    def output(self, x: Tensor, output: Tensor) -> Tensor:
        """The output of a residual layer (B, C, H, W), and its input x where it is skipped."""
        return self._where("skip", lambda: x, output)

    def _where(self, kind: Kind, perturbed: Callable[[], Tensor], plain: Tensor) -> Tensor:
        mask = self.masks.get(kind)
        if mask is None:
            return plain
        return torch.where(mask.view(-1, *[1] * (plain.ndim - 1)), perturbed(), plain)


def blur_queries(q: Tensor, sigma: float, aspect: float) -> Tensor:
    """Queries (B, heads, N, d) blurred over their grid of h x w = N tokens with h / w = `aspect`.

    The Gaussian's weights are normalised within the grid: sigma = 0+ changes nothing, an infinite one gives the mean
    query.
    """
    if math.isinf(sigma):
        return q.mean(2, keepdim=True).expand_as(q)
    height = round(math.sqrt(q.shape[2] * aspect))
    grid = q.unflatten(2, (height, -1))  # (B, heads, h, w, d)
    down, right = (_gaussian(size, sigma, q) for size in grid.shape[2:4])  # (h, h), (w, w)
    return torch.einsum("ih,jw,bnhwd->bnijd", down, right, grid).flatten(2, 3)


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    """(size, size): row i holds the weights of all positions in the blur at position i."""
    position = torch.arange(size, device=like.device, dtype=torch.float32)
    return (-0.5 * ((position[:, None] - position) / sigma) ** 2).softmax(-1).to(like.dtype)


def layer_perturbations(
    network: nn.Module, perturbations: Sequence[tuple[Perturbation, Tensor]], aspect: float
) -> dict[nn.Module, LayerPerturbation]:
    """By layer, what is done to it in one call, from perturbations with the samples (B,) that they are for."""
    by_layer: dict[nn.Module, LayerPerturbation] = {}
    for perturbation, mask in perturbations:
        for name in perturbation.layers:
            layer = by_layer.setdefault(network.get_submodule(name), LayerPerturbation(aspect))
            earlier = layer.masks.get(perturbation.kind)
            layer.masks[perturbation.kind] = mask if earlier is None else earlier | mask
            if perturbation.kind == "blur":
                layer.sigma = perturbation.sigma
    return by_layer
