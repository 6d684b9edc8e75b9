"""The size of a network, known before it takes memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ldm.runtime.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def build_within(limit: int, build: Callable[[], Network]) -> Network:
    """The network that `build` makes; `UserError` where it has more parameters than `limit`.

    It is built on the meta device first, where tensors have shapes and no memory.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        count = sum(parameter.numel() for parameter in build().parameters())
    if count > limit:
        problem = f"expected networks of at most so many parameters, but the settings give one of {count:,}"
        remedy = "make it narrower, or raise it: a training needs about 16 bytes for each"
        raise UserError(problem, setting="max_parameters", value=f"{limit:,}", remedy=remedy)
    return build()
