"""Which images of a data set are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.data.protocol import ImageData


def drawn(length: int, count: int, seed: int) -> list[int]:
    """`count` different indices below `length` at random, in order; all of them if there are no more."""
    if count >= length:
        return list(range(length))
    return sorted(np.random.Generator(np.random.PCG64(seed)).permutation(length)[:count].tolist())


def spread(length: int, count: int) -> list[int]:
    """At most `count` indices from the first to the last, evenly."""
    count = min(count, length)
    return [round(place * (length - 1) / max(1, count - 1)) for place in range(count)]


def batches(data: ImageData, indices: Sequence[int], size: int) -> Iterator[Tensor]:
    """Images (b, 3, H, W) in the order of `indices`."""
    for start in range(0, len(indices), size):
        yield torch.stack([data[index].image for index in indices[start : start + size]])
