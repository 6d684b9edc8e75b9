"""What a training of several processes must know of the whole batch: means over them, with their gradients."""

from __future__ import annotations

from torch import Tensor, distributed
from torch.distributed.nn.functional import all_reduce


def several_processes() -> bool:
    """Whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes, differentiable; in a single process the tensor itself.

    Every process must ask for it, and at the same place: it waits for the others.
    """
    return all_reduce(values) / distributed.get_world_size() if several_processes() else values


def joint_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance (C,) of x (B, C, h, w) over the batches of all processes, which are equally large."""
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    if not several_processes():
        return mean, var
    joint = over_processes(mean)
    return joint, over_processes(var + (mean - joint).square())
