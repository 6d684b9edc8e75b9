"""Vector quantisation by direction, of groups of channels, and of residuals: variants of `VectorQuantizer`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.bottlenecks.base import BottleneckOutput, Quantizer
from autoencoders.bottlenecks.vector_quantizer import VectorQuantizer, straight_through


class CosineQuantizer(VectorQuantizer):
    """Latents (B, C, h, w) and codebook vectors have norm 1; the nearest vector is that of the largest cosine.

    Yu et al. 2022, arXiv:2110.04627, section 3.2: ||l2(z) - l2(e)||^2 = 2 - 2 cos(z, e).
    """

    def codebook(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=1)

    def vectors(self, features: Tensor) -> Tensor:
        return F.normalize(super().vectors(features), dim=1)


class _SeveralCodebooks(Quantizer):
    """Each position of the latents has an index into each of several codebooks: indices (B, codebooks, h, w)."""

    def __init__(self, quantizers: list[VectorQuantizer]) -> None:
        super().__init__()
        self.add_module("parts", nn.ModuleList(quantizers))  # the name in weight files

    def quantizers(self) -> list[VectorQuantizer]:
        """Those of the groups or stages, in order."""
        return [cast(VectorQuantizer, quantizer) for quantizer in self.get_submodule("parts").children()]

    def to_indices(self, latents: Tensor) -> tuple[Tensor, ...]:
        return (self.indices(latents).permute(0, 2, 3, 1).flatten(2),)  # (B, h, w * codebooks)

    def from_indices(self, indices: Sequence[Tensor]) -> Tensor:
        return self.lookup(indices[0].unflatten(2, (-1, len(self.quantizers()))).permute(0, 3, 1, 2))

    def _vectors_of(self, indices: Tensor) -> list[Tensor]:
        quantizers = self.quantizers()
        if indices.ndim != 4 or indices.shape[1] != len(quantizers):
            raise ValueError(f"indices: expected (B, {len(quantizers)}, h, w), got {tuple(indices.shape)}")
        return [quantizer.lookup(index) for quantizer, index in zip(quantizers, indices.unbind(1), strict=True)]


def _mean(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    joint = {name: torch.stack([term[name] for term in terms]) for name in terms[0]}
    return {name: (value if value.is_floating_point() else value.float()).mean() for name, value in joint.items()}


def _joint_metrics(outputs: Sequence[BottleneckOutput]) -> dict[str, Tensor]:
    """Means over the codebooks, and the bits of all indices of a position together."""
    bits = torch.stack([output.metrics["perplexity"].log2() for output in outputs]).sum()
    return {**_mean([output.metrics for output in outputs]), "bits_per_place": bits}


class ProductQuantizer(_SeveralCodebooks):
    """The channels in G groups, each with a codebook of its own: K^G vectors at the price of K * G.

    Jegou et al. 2011, section 2.2. Losses are means over all elements; metrics are means over the codebooks.
    """

    def __init__(self, num_quantizers: int, num_codes: int, channels: int, **options: Any) -> None:
        """`options` are those of `VectorQuantizer`. `ValueError` if the groups are not equal."""
        if channels % num_quantizers:
            raise ValueError(f"num_quantizers {num_quantizers}: expected a divisor of {channels} channels")
        width = channels // num_quantizers
        super().__init__([VectorQuantizer(num_codes, width, **options) for _ in range(num_quantizers)])

    def _groups(self, x: Tensor) -> Iterator[tuple[VectorQuantizer, Tensor]]:
        quantizers = self.quantizers()
        return zip(quantizers, x.chunk(len(quantizers), 1), strict=True)

    def indices(self, latents: Tensor) -> Tensor:
        return torch.stack([quantizer.indices(group) for quantizer, group in self._groups(latents)], 1)

    def lookup(self, indices: Tensor) -> Tensor:
        return torch.cat(self._vectors_of(indices), 1)

    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """As `VectorQuantizer.initialise`, group by group."""
        for quantizer, group in self._groups(features):
            quantizer.initialise(group, generator)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        outputs = [quantizer(group, generator) for quantizer, group in self._groups(features)]
        latents = torch.cat([output.latents for output in outputs], 1)
        return BottleneckOutput(latents, _mean([output.losses for output in outputs]), _joint_metrics(outputs))


class ResidualQuantizer(_SeveralCodebooks):
    """Each codebook quantises the residual of those before it; the latents are the sum of the vectors.

    Zeghidour et al. 2021, arXiv:2107.03312, algorithm 1. Every stage has the losses of `VectorQuantizer` on its own
    residual, and they are added up; the gradient passes straight through the sum. Metrics are means over the stages.
    """

    def __init__(self, num_quantizers: int, num_codes: int, channels: int, **options: Any) -> None:
        """`options` are those of `VectorQuantizer`."""
        super().__init__([VectorQuantizer(num_codes, channels, **options) for _ in range(num_quantizers)])

    def indices(self, latents: Tensor) -> Tensor:
        indices, residual = [], latents
        for quantizer in self.quantizers():
            indices.append(quantizer.indices(residual))
            residual = residual - quantizer.lookup(indices[-1]).to(residual)
        return torch.stack(indices, 1)

    def lookup(self, indices: Tensor) -> Tensor:
        return torch.stack(self._vectors_of(indices)).sum(0)

    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """As `VectorQuantizer.initialise`, each stage from the residuals of those before it."""
        for quantizer in self.quantizers():
            quantizer.initialise(features, generator)
            features = features - quantizer.decode(features)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        total, outputs = torch.zeros_like(features), []
        for quantizer in self.quantizers():
            outputs.append(quantizer(features - total, generator))
            total = total + outputs[-1].latents.detach()
        losses = {name: torch.stack([output.losses[name] for output in outputs]).sum() for name in outputs[0].losses}
        return BottleneckOutput(straight_through(features, total), losses, _joint_metrics(outputs))
