"""Sources of uint8 pixels: images in memory, or files that are decoded when they are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ldm.data.decode import MAX_BYTES, BadImageError, crop_square, decode_rgb, fit
from ldm.runtime.errors import UserError
from ldm.runtime.files import open_regular

CropPosition = tuple[float, float] | None  # (down, right) in [0, 1); None: the centre
FileStat = tuple[int, int]  # size in bytes, time of change in ns


class Pixels(Protocol):
    def crop(self, index: int, position: CropPosition) -> np.ndarray:
        """A square of image `index`, its shorter side resized: uint8 (size, size, 3)."""


class RamPixels:
    """Resized images one after another in one tensor, which worker processes share."""

    def __init__(self, pixels: bytearray | np.ndarray, shapes: Sequence[tuple[int, int]]) -> None:
        self.shapes = np.array(shapes, dtype=np.int64)  # (N, 2): height, width
        ends = (self.shapes.prod(1) * 3).cumsum()
        self.starts = np.concatenate(([0], ends))  # (N + 1,)
        self.flat = torch.frombuffer(pixels, dtype=torch.uint8)

    def crop(self, index: int, position: CropPosition) -> np.ndarray:
        height, width = self.shapes[index]
        image = self.flat[self.starts[index] : self.starts[index + 1]].numpy().reshape(height, width, 3)
        return crop_square(image, position)


class Contents(Protocol):
    """The encoded images of a listing, by their index in it; picklable for workers."""

    def stat(self, index: int) -> FileStat:
        """BadImageError if the file system does not give them."""

    def read(self, index: int) -> bytes:
        """The content of an image file; BadImageError if it is too large or cannot be read."""

    def where(self, index: int) -> str:
        """The name of the image for a message."""


class FolderContents:
    """One file for each image."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def stat(self, index: int) -> FileStat:
        return file_stat(self.folder / self.names[index])

    def read(self, index: int) -> bytes:
        return read_file(self.folder / self.names[index])

    def where(self, index: int) -> str:
        return str(self.folder / self.names[index])


class FilePixels:
    """Images decoded from their files each time; a file that changed since it was checked is an error."""

    def __init__(self, contents: Contents, indices: Sequence[int], stats: Sequence[FileStat], size: int) -> None:
        self.contents, self.size = contents, size
        self.indices = np.array(indices, dtype=np.int64)  # (N,) in the listing
        self.stats = np.array(stats, dtype=np.int64)  # (N, 2): bytes, time of change in ns

    def crop(self, index: int, position: CropPosition) -> np.ndarray:
        listed = int(self.indices[index])
        try:
            if self.contents.stat(listed) != tuple(self.stats[index]):
                raise BadImageError("changed since it was checked")
            return crop_square(fit(decode_rgb(self.contents.read(listed)), self.size), position)
        except BadImageError as error:
            where = self.contents.where(listed)
            raise UserError(f"{where}: {error}", remedy="start again, so that the folder is checked anew") from None


def file_stat(path: Path) -> FileStat:
    """Size and time of change; BadImageError if the file system does not give them."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise BadImageError(error.strerror or "cannot be read") from None
    return status.st_size, status.st_mtime_ns


def read_file(path: Path) -> bytes:
    """The content of an image file; BadImageError if it is too large or cannot be read."""
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_BYTES:
                raise BadImageError(f"larger than {MAX_BYTES} bytes")
            return stream.read()
    except OSError as error:
        raise BadImageError(error.strerror or "cannot be read") from None


def square_image(image: Image.Image, size: int) -> torch.Tensor:
    """The centre square of an RGB image, (3, size, size) in [-1, 1]; BadImageError if it is too long and thin."""
    square = crop_square(fit(image, size))  # (size, size, 3)
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1))).float() / 127.5 - 1
