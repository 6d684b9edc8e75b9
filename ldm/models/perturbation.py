"""Layers of the U-Net made worse on purpose, in some samples of a batch: what perturbed guidances steer away from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Kind = Literal["identity", "blur", "skip"]


@dataclass(frozen=True)
class Perturbation:
    """`kind` of change to the modules `layers`, named as in the state dict.

    identity: each token attends to itself alone (PAG, Ahn et al. 2024, arXiv:2403.17377, eq. 14). blur: the queries are
    blurred over the (h, w) grid of tokens by a Gaussian of standard deviation `sigma` tokens; infinite, the default:
    each is their mean (SEG, Hong 2024, arXiv:2408.00760, section 4). skip: the residual layer gives what it was given.
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

    aspect: float  # height / width of the picture, and so of every grid of tokens
    masks: dict[Kind, Tensor] = field(default_factory=dict)
    sigma: float = math.inf

    def queries(self, q: Tensor) -> Tensor:
        """q (B, heads, N, d), blurred where this is asked for."""
        return self._where("blur", lambda: blurred(q, self.sigma, self.aspect), q)

    def mixed(self, values: Tensor, mixed: Tensor) -> Tensor:
        """The mixture of the values (B, heads, N, d); the values themselves under an identity map."""
        return self._where("identity", lambda: values, mixed)

    def _where(self, kind: Kind, changed: Callable[[], Tensor], plain: Tensor) -> Tensor:
        mask = self.masks.get(kind)
        if mask is None:
            return plain
        return torch.where(mask.view(-1, *[1] * (plain.ndim - 1)), changed(), plain)


_NONE: Mapping[nn.Module, LayerPerturbation] = MappingProxyType({})


class Told(NamedTuple):
    """What the layers of one call are told besides x and time: the text states, and which of them are perturbed."""

    text: Tensor | None = None  # (B L, D)
    edits: Mapping[nn.Module, LayerPerturbation] = _NONE
    known: Mapping[nn.Module, tuple[Tensor, Tensor]] | None = (
        None  # the text's keys and values, of a `CachedConditioning`
    )

    def kept(self, layer: nn.Module, before: Tensor, after: Tensor) -> Tensor:
        """The layer's output (B, C, H, W), or its input in the samples in which it is left out."""
        mask = self.edits[layer].masks.get("skip") if layer in self.edits else None
        return after if mask is None else torch.where(mask.view(-1, 1, 1, 1), before, after)


def blurred(q: Tensor, sigma: float, aspect: float) -> Tensor:
    """Queries (B, heads, N, d) blurred over their grid of h x w = N tokens with h / w = `aspect`.

    The Gaussian's weights are made to sum to 1 within the grid, so that sigma = 0+ changes nothing and an infinite one
    gives the mean query.
    """
    if math.isinf(sigma):
        return q.mean(2, keepdim=True).expand_as(q)
    height = round(math.sqrt(q.shape[2] * aspect))
    grid = q.unflatten(2, (height, -1))  # (B, heads, h, w, d)
    down, right = (_gaussian(size, sigma, q) for size in grid.shape[2:4])  # (h, h), (w, w)
    return torch.einsum("ih,jw,bnhwd->bnijd", down, right, grid).flatten(2, 3)


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    place = torch.arange(size, device=like.device, dtype=torch.float32)
    return (-0.5 * ((place[:, None] - place) / sigma) ** 2).softmax(-1).to(like.dtype)


def edits_of(
    network: nn.Module, perturbations: Sequence[tuple[Perturbation, Tensor]], aspect: float
) -> Mapping[nn.Module, LayerPerturbation]:
    """The edits of each layer for one call, from perturbations with the samples (B,) that they are for."""
    found: dict[nn.Module, LayerPerturbation] = {}
    for perturbation, mask in perturbations:
        for name in perturbation.layers:
            edits = found.setdefault(network.get_submodule(name), LayerPerturbation(aspect))
            earlier = edits.masks.get(perturbation.kind)
            edits.masks[perturbation.kind] = mask if earlier is None else earlier | mask
            if perturbation.kind == "blur":
                edits.sigma = perturbation.sigma
    return found
