"""Choices of images of a data set, and batches of them without augmentation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.data.dataset import ImageData, collate


def random_indices(length: int, count: int, seed: int = 0) -> list[int]:
    """`count` different random indices below `length`, in increasing order; at most all of them."""
    if count >= length:
        return list(range(length))
    return sorted(np.random.Generator(np.random.PCG64(seed)).permutation(length)[:count].tolist())


def even_indices(length: int, count: int) -> list[int]:
    """At most `count` indices, evenly spaced from the first to the last."""
    count = min(count, length)
    return [round(k * (length - 1) / max(1, count - 1)) for k in range(count)]


def shuffled_indices(length: int, count: int) -> list[int]:
    """At most `count` indices of a fixed permutation. Folders are sorted by class, so their first images would all be
    of one class."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(0))[:count].tolist()


def image_batches(data: ImageData, keys: Iterable[Any], workers: int) -> DataLoader[Any]:
    """A `Batch` for each list of `keys` (as `data[key]` takes them), from `workers` processes or from this one."""
    return DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=keys,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # otherwise DataLoader draws a number from the global one
    )


def plain_batches(
    data: ImageData, indices: Iterable[int], size: int, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """Images without augmentation, (b, 3, H, W) on the device, in the order of `indices`."""
    chosen = list(indices)
    for start in range(0, len(chosen), size):
        yield to_device(collate([data[index] for index in chosen[start : start + size]]).images, device)


def to_device(images: Tensor, device: torch.device | str) -> Tensor:
    """Move images without waiting for the device, in channels_last."""
    return images.to(device, non_blocking=True, memory_format=torch.channels_last)
