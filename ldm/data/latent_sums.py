"""Checksums of cached latents: a CRC-32 of each moment of each image and side, in the metadata of their shard.

So an image's latents are checked when they are read first, in a cache of any size, and no file is read for that alone.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

SUMS = "crc32"  # the name in the metadata


def encoded_sums(tensors: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """The checksums of moments (n, F, C, h, w) as text."""
    sums = np.stack([_sums(tensors[name].numpy()) for name in names], -1)  # (n, F, moments)
    return base64.b64encode(sums.tobytes()).decode("ascii")


def decoded_sums(text: str, rows: int, sides: int, moments: int) -> np.ndarray:
    """(rows, sides, moments) uint32; `ValueError` for another text."""
    sums = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint32)
    return sums.reshape(rows, sides, moments)


def _sums(latents: np.ndarray) -> np.ndarray:
    sums = [[zlib.crc32(np.ascontiguousarray(side).data) for side in example] for example in latents]
    return np.array(sums, dtype=np.uint32)


class ShardCheck:
    """The checksums of a shard's rows, each compared once; of a shard without, every row is taken as it is."""

    def __init__(self, sums: np.ndarray | None, names: Sequence[str]) -> None:
        self._sums, self._names = sums, list(names)
        self._checked = None if sums is None else np.zeros(sums.shape, dtype=bool)

    @property
    def has_sums(self) -> bool:
        return self._sums is not None

    def first_damaged(self, name: str, latents: np.ndarray) -> int | None:
        """The first row of a whole moment (n, F, C, h, w) that differs from its checksums."""
        if self._sums is None or self._checked is None:
            return None
        position = self._names.index(name)
        differing = np.flatnonzero((_sums(latents) != self._sums[..., position]).any(1))
        self._checked[..., position] = True
        return int(differing[0]) if len(differing) else None

    def is_damaged(self, name: str, row: int, side: int, latents: np.ndarray) -> bool:
        """Whether a row (C, h, w) differs from its checksum; looked at when it is read first."""
        if self._sums is None or self._checked is None:
            return False
        index = row, side, self._names.index(name)
        if self._checked[index]:
            return False
        self._checked[index] = True
        return zlib.crc32(np.ascontiguousarray(latents).data) != self._sums[index]
