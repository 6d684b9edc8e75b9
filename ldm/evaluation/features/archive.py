"""Arrays in a NumPy archive (.npz): read without pickle, every size checked before memory is taken for it."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write

LIMIT = 8 * 2**30  # bytes of one array
_HEADER = 10_000  # characters
_KINDS = "fiu"  # floats and integers: nothing that refers to objects


class Archive:
    """What an .npz file holds: `shapes` and `kinds` by name, and `read`. `UserError` names a file that is not whole."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        try:
            with zipfile.ZipFile(self.path) as archive:
                for entry in archive.infolist():
                    with archive.open(entry) as stream:
                        shape, kind = _header(stream)
                        size = math.prod(shape) * kind.itemsize
                        if kind.kind not in _KINDS or stream.tell() + size != entry.file_size or size > LIMIT:
                            raise ValueError(f"{entry.filename}: {kind} of shape {shape} is not what is expected")
                    self.shapes[entry.filename.removesuffix(".npy")] = shape
        except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path}: not a sound .npz file of plain arrays ({error})") from None

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def read(self, name: str) -> np.ndarray:
        """One array; `UserError` where it is damaged."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as stream:
                return npy.read_array(stream, allow_pickle=False, max_header_size=_HEADER)
        except (OSError, ValueError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile, zipfile.error) as error:
            raise UserError(f"{self.path}: its array {name} cannot be read ({error})") from None


def save_archive(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays as one .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(path, buffer.getvalue())


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"array format {version} is not known")
    shape, _, kind = read(stream, max_header_size=_HEADER)
    return shape, kind
