"""Random numbers with a batch axis that do not depend on how a batch is split over processes and passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class ShardGenerator(torch.Generator):
    """A generator for the rows `first`, ... of a batch of `total` rows: `random_rows` draws for all of them, then cuts.

    Whoever draws with it as with any generator gets numbers for his part alone.
    """

    first: int
    total: int

    def __new__(cls, device: torch.device | str, first: int, total: int) -> ShardGenerator:
        made = super().__new__(cls, device)  # type: ignore[call-arg]
        made.first, made.total = first, total
        return made


def random_rows(
    function: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator, **options: object
) -> Tensor:
    """`function` (torch.randn, torch.rand) of a shape (B, ...) on the generator's device: the rows of this part."""
    drawn = function(full_shape(shape, generator), generator=generator, device=generator.device, **options)
    return own_rows(drawn, shape[0], generator)


def full_shape(shape: Sequence[int], generator: torch.Generator) -> tuple[int, ...]:
    """The shape of the whole batch that a part of shape (B, ...) belongs to."""
    return (generator.total if isinstance(generator, ShardGenerator) else shape[0], *shape[1:])


def own_rows(drawn: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The `count` rows of this part of what was drawn for all."""
    return drawn[generator.first : generator.first + count] if isinstance(generator, ShardGenerator) else drawn
