"""The protocol of data sets, their examples and batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm.data.report import DataReport
from samplers.level import short_repr

Key = int | tuple[int, int]  # index, or (index, seed)


@dataclass(frozen=True, slots=True)
class Example:
    image: Tensor  # (3, H, W) float32 in [-1, 1]
    label: int  # -1: none
    caption: str  # "": none
    index: int

    __repr__ = short_repr


@dataclass(frozen=True, slots=True)
class Batch:
    images: Tensor  # (B, 3, H, W) float32 in [-1, 1]
    labels: Tensor  # (B,) int64, -1: none
    captions: list[str]
    indices: Tensor  # (B,) int64

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.captions)

    def pin_memory(self) -> Batch:
        """Called by `DataLoader(pin_memory=True)`."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.captions, self.indices.pin_memory())


@runtime_checkable
class ImageData(Protocol):
    """A split of a data set: a fixed sequence of images with labels and captions, picklable for workers.

    `data[index]` has no augmentation: centre crop, no flip, first caption.
    `data[index, seed]` has a random crop, flip and caption that depend on (index, seed) alone, not on order or worker.
    """

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...  # "train" or "validation"
    @property
    def image_size(self) -> int: ...
    @property
    def crop(self) -> str: ...  # "center" or "random": what `data[index, seed]` does
    @property
    def flip(self) -> bool: ...  # whether `data[index, seed]` may mirror the image left to right
    @property
    def class_names(self) -> tuple[str, ...]: ...  # () if there are no labels
    @property
    def has_captions(self) -> bool: ...
    @property
    def attribute_names(self) -> Mapping[str, tuple[str, ...]]: ...  # attribute -> its values; {} if not known
    @property
    def fingerprint(self) -> str: ...  # of all training data: images, labels, captions, their order
    @property
    def image_fingerprint(self) -> str: ...  # of the images and their order alone
    @property
    def report(self) -> DataReport: ...  # what was read, of all splits, and what was passed over
    def __len__(self) -> int: ...
    def __getitem__(self, key: Key) -> Example: ...
    def label(self, index: int) -> int: ...  # -1: none
    def captions(self, index: int) -> tuple[str, ...]: ...  # () if there are none
    def attributes(self, index: int) -> dict[str, Any]: ...  # {} if not known


def random_words(index: int, seed: int) -> tuple[int, int, int, int]:
    """Four uniform 32-bit numbers: a hash of (index, seed), so there is no state."""
    digest = hashlib.blake2b(f"{int(seed)}/{int(index)}".encode(), digest_size=16).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8, 12))  # type: ignore[return-value]


def collate(examples: Sequence[Example]) -> Batch:
    """Examples to a batch: the `collate_fn` of a DataLoader."""
    if not examples:
        raise ValueError("collate: expected at least one example, got none")
    return Batch(
        torch.stack([example.image for example in examples]),  # (B, 3, H, W)
        torch.tensor([example.label for example in examples], dtype=torch.int64),
        [example.caption for example in examples],
        torch.tensor([example.index for example in examples], dtype=torch.int64),
    )
