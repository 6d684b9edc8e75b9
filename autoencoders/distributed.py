"""Training by several processes: means over all of them, and random numbers that do not depend on their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_reduce


def several_processes() -> bool:
    """Whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes, differentiable; in a single process the tensor itself.

    A collective operation: every process calls it, in the same order.
    """
    return all_reduce(values) / distributed.get_world_size() if several_processes() else values


def sum_over_processes(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The sums over all processes of tensors (K, *), by one reduction; unchanged in a single process."""
    if not several_processes():
        return tuple(tensors)
    joint = torch.cat(list(tensors), dim=1)
    distributed.all_reduce(joint)
    return joint.split([tensor.shape[1] for tensor in tensors], dim=1)


def joint_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance (C,) of x (B, C, h, w) over the batches of all processes, which are equally large."""
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    if not several_processes():
        return mean, var
    joint = over_processes(mean)
    return joint, over_processes(var + (mean - joint).square())


class ShardGenerator(torch.Generator):
    """A generator for the rows `first`, ... of a batch of `total` rows.

    `random_rows` draws for the whole batch and returns these rows, so that they do not depend on how a batch is split
    over processes and passes.
    """

    first: int
    total: int

    def __new__(cls, device: torch.device | str, first: int, total: int) -> ShardGenerator:
        generator = super().__new__(cls, device)  # type: ignore[call-arg]
        generator.first, generator.total = first, total
        return generator


def random_rows(
    function: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator, **options: object
) -> Tensor:
    """`function` (torch.randn, torch.rand) of a shape (B, ...) on the generator's device: the rows of its shard."""
    batch = function(full_shape(shape, generator), generator=generator, device=generator.device, **options)
    return own_rows(batch, shape[0], generator)


def full_shape(shape: Sequence[int], generator: torch.Generator) -> tuple[int, ...]:
    """The shape of the whole batch of which a shard has the shape (B, ...)."""
    return (generator.total if isinstance(generator, ShardGenerator) else shape[0], *shape[1:])


def own_rows(batch: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The `count` rows of the generator's shard in a whole batch."""
    return batch[generator.first : generator.first + count] if isinstance(generator, ShardGenerator) else batch


def normal_rows(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise (B, *shape), row i from generator i."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise shaped like `like`, drawn on the generator's own device."""
    return random_rows(torch.randn, like.shape, generator, dtype=like.dtype).to(like.device)
