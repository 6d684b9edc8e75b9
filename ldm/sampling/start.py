"""Where sampling begins if not in the noise of one seed: in an image, in its inversion, or between two seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.sampling.config import Request
from samplers import Guidance, Keep, Level, SampleNoise, interpolate
from samplers.level import short_repr


@dataclass(frozen=True, eq=False)
class Start:
    """Latents (C, h, w) to begin from, and how many of the sampler's last steps are run from there.

    They are those of an image and get the noise of the first of these levels (SDEdit: Meng et al. 2022,
    arXiv:2108.01073), unless `pure`, which begins in noise alone, or `inverted`, where the noise is in them already.
    Where `repaint` (1, h, w) is 0 the latents are kept, by `samplers.Keep`; where it is 1 they are drawn.
    """

    latents: Tensor
    steps: int
    pure: bool = False
    inverted: bool = False
    repaint: Tensor | None = None

    __repr__ = short_repr

    def levels(self, levels: Sequence[Level]) -> tuple[Level, ...]:
        """The last `steps` + 1 of the levels."""
        return tuple(levels[-1 - self.steps :])

    @property
    def guidances(self) -> list[Guidance]:
        return [] if self.repaint is None else [Keep(self.latents, 1 - self.repaint)]

    def begin(self, noise: Tensor, first: Level) -> Tensor:
        """x at the first level, from unit noise (B, C, h, w)."""
        if self.inverted:
            return self.latents.expand_as(noise)
        noised = first.alpha * self.latents + first.sigma * noise
        if not self.pure:
            return noised
        pure = math.hypot(first.alpha, first.sigma) * noise
        return pure if self.repaint is None else torch.where(self.repaint > 0, pure, noised)


class PathNoise:
    """The noise of samples on paths between two streams each: `interpolate` of what both draw, sample by sample."""

    def __init__(self, ends: Sequence[tuple[SampleNoise, SampleNoise]], weights: Sequence[float]) -> None:
        self.ends, self.weights = tuple(ends), tuple(weights)

    def initial(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Unit normal noise to start from: (B, *shape)."""
        pairs = [(a.initial(shape, dtype, device), b.initial(shape, dtype, device)) for a, b in self.ends]
        return torch.cat([interpolate(a, b, w) for (a, b), w in zip(pairs, self.weights, strict=True)])

    def __call__(self, like: Tensor, now: Level, next: Level) -> Tensor:
        """Fresh unit normal noise like `like` (B, ...) for the step now -> next."""
        rows = [(a(row, now, next), b(row, now, next)) for (a, b), row in zip(self.ends, like.split(1), strict=True)]
        return torch.cat([interpolate(a, b, w) for (a, b), w in zip(rows, self.weights, strict=True)])


def noise_of(requests: Sequence[Request], seed: int, first_index: int, position: int) -> SampleNoise | PathNoise:
    """The noise of the samples from `position` on; all points of a path have the number `first_index`."""
    numbers = [first_index + (position + row if request.toward is None else 0) for row, request in enumerate(requests)]
    if all(request.toward_seed is None for request in requests):
        return SampleNoise(seed, numbers)
    others = [seed if request.toward_seed is None else request.toward_seed for request in requests]
    ends = [(SampleNoise(seed, [i]), SampleNoise(other, [i])) for i, other in zip(numbers, others, strict=True)]
    return PathNoise(ends, [request.toward or 0.0 for request in requests])
