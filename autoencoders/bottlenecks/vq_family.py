"""Vector quantisation by direction, of groups of channels, and of what is left over: kin of `VectorQuantizer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.bottlenecks.base import BottleneckOutput, Quantizer
from autoencoders.bottlenecks.vector_quantizer import VectorQuantizer, straight_through


class CosineQuantizer(VectorQuantizer):
    """Latents (B, C, h, w) and codes have norm 1; the nearest code is that of the largest cosine.

    Yu et al. 2022, arXiv:2110.04627, section 3.2: ||l2(z) - l2(e)||^2 = 2 - 2 cos(z, e).
    """

    def codes(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=1)

    def vectors(self, features: Tensor) -> Tensor:
        return F.normalize(super().vectors(features), dim=1)


class _Several(Quantizer):
    """Several codebooks, of which each position of the latents takes one code each: indices (B, parts, h, w)."""

    def __init__(self, parts: list[VectorQuantizer]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def quantizers(self) -> list[VectorQuantizer]:
        """Those of the groups or stages, in order."""
        return [cast(VectorQuantizer, part) for part in self.parts]

    def to_indices(self, latents: Tensor) -> tuple[Tensor, ...]:
        return (self.indices(latents).permute(0, 2, 3, 1).flatten(2),)  # (B, h, w * parts): a place's side by side

    def from_indices(self, codes: Sequence[Tensor]) -> Tensor:
        return self.lookup(codes[0].unflatten(2, (-1, len(self.parts))).permute(0, 3, 1, 2))

    def _codes_of(self, indices: Tensor) -> list[Tensor]:
        if indices.ndim != 4 or indices.shape[1] != len(self.parts):
            raise ValueError(f"indices: expected (B, {len(self.parts)}, h, w), got {tuple(indices.shape)}")
        return [part.lookup(index) for part, index in zip(self.quantizers(), indices.unbind(1), strict=True)]


def _mean(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    joint = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    return {name: (value if value.is_floating_point() else value.float()).mean() for name, value in joint.items()}


def _joint_metrics(outputs: Sequence[BottleneckOutput]) -> dict[str, Tensor]:
    """Means over the codebooks, and the bits that their codes take together at a place."""
    bits = torch.stack([output.metrics["perplexity"].log2() for output in outputs]).sum()
    return {**_mean([output.metrics for output in outputs]), "bits_per_place": bits}


class ProductQuantizer(_Several):
    """The channels in groups, each with a codebook of its own: K^parts codes at the price of K * parts.

    Jegou et al. 2011, section 2.2. Losses are means over all elements; metrics are means over the codebooks.
    """

    def __init__(self, num_quantizers: int, channels: int, make: Callable[[int], VectorQuantizer]) -> None:
        """`make(channels)` gives the quantiser of a group. `ValueError` if the groups are not equal."""
        if channels % num_quantizers:
            raise ValueError(
                f"num_quantizers {num_quantizers}: expected a divisor of the latents' channels, {channels}"
            )
        super().__init__([make(channels // num_quantizers) for _ in range(num_quantizers)])

    def indices(self, latents: Tensor) -> Tensor:
        groups = latents.chunk(len(self.parts), 1)
        return torch.stack([part.indices(group) for part, group in zip(self.quantizers(), groups, strict=True)], 1)

    def lookup(self, indices: Tensor) -> Tensor:
        return torch.cat(self._codes_of(indices), 1)

    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """As `VectorQuantizer.initialise`, group by group."""
        for part, group in zip(self.quantizers(), features.chunk(len(self.parts), 1), strict=True):
            part.initialise(group, generator)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        groups = features.chunk(len(self.parts), 1)
        outputs = [part(group, generator) for part, group in zip(self.quantizers(), groups, strict=True)]
        latents = torch.cat([output.latents for output in outputs], 1)
        return BottleneckOutput(latents, _mean([output.losses for output in outputs]), _joint_metrics(outputs))


class ResidualQuantizer(_Several):
    """Each codebook quantises what those before it left over; the latents are the sum of the codes.

    Zeghidour et al. 2021, arXiv:2107.03312, algorithm 1. Every stage has the losses of `VectorQuantizer` on its own
    residual, and they are added up; the gradient passes straight through the sum. Metrics are means over the stages.
    """

    def __init__(self, num_quantizers: int, channels: int, make: Callable[[int], VectorQuantizer]) -> None:
        """`make(channels)` gives the quantiser of a stage."""
        super().__init__([make(channels) for _ in range(num_quantizers)])

    def indices(self, latents: Tensor) -> Tensor:
        found, rest = [], latents
        for part in self.quantizers():
            found.append(part.indices(rest))
            rest = rest - part.lookup(found[-1]).to(rest)
        return torch.stack(found, 1)

    def lookup(self, indices: Tensor) -> Tensor:
        return torch.stack(self._codes_of(indices)).sum(0)

    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """As `VectorQuantizer.initialise`, each stage from what is left over for it."""
        for part in self.quantizers():
            part.initialise(features, generator)
            features = features - part.decode(features)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        total, outputs = torch.zeros_like(features), []
        for part in self.quantizers():
            outputs.append(part(features - total, generator))
            total = total + outputs[-1].latents.detach()
        losses = {name: torch.stack([output.losses[name] for output in outputs]).sum() for name in outputs[0].losses}
        return BottleneckOutput(straight_through(features, total), losses, _joint_metrics(outputs))
