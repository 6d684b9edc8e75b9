"""Where the uint8 pixels of an image come from: memory, or its file."""

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

CropPosition = tuple[float, float] | None  # of a crop: (down, right) in [0, 1), or the centre


class Pixels(Protocol):
    def crop(self, index: int, place: CropPosition) -> np.ndarray:
        """A square of image `index`, its shorter side resized: uint8 (size, size, 3)."""
        ...


class RamPixels:
    """Resized images one after another in one tensor, which worker processes share."""

    def __init__(self, pixels: bytearray | np.ndarray, shapes: Sequence[tuple[int, int]]) -> None:
        self.shapes = np.array(shapes, dtype=np.int64)  # (N, 2): height, width
        ends = (self.shapes.prod(1) * 3).cumsum()
        self.starts = np.concatenate(([0], ends))  # (N + 1,)
        self.flat = torch.frombuffer(pixels, dtype=torch.uint8)

    def crop(self, index: int, place: CropPosition) -> np.ndarray:
        height, width = self.shapes[index]
        image = self.flat[self.starts[index] : self.starts[index + 1]].numpy().reshape(height, width, 3)
        return crop_square(image, place)


class Contents(Protocol):
    """Where the encoded images of a listing are, by their place in it; picklable for workers."""

    def facts(self, place: int) -> tuple[int, int]:
        """Bytes and time of change in ns; BadImageError if the file cannot be looked at."""
        ...

    def read(self, place: int) -> bytes:
        """The content of an image file; BadImageError if it is too large or cannot be read."""
        ...

    def where(self, place: int) -> str:
        """The name of the image for a message."""
        ...


class FolderContents:
    """A file an image."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def facts(self, place: int) -> tuple[int, int]:
        return file_stat(self.folder / self.names[place])

    def read(self, place: int) -> bytes:
        return read_file(self.folder / self.names[place])

    def where(self, place: int) -> str:
        return str(self.folder / self.names[place])


class FilePixels:
    """Images decoded from their files each time; a file that changed since it was checked is an error."""

    def __init__(self, contents: Contents, places: Sequence[int], stats: Sequence[tuple[int, int]], size: int) -> None:
        self.contents, self.size = contents, size
        self.places = np.array(places, dtype=np.int64)  # (N,) in the listing
        self.stats = np.array(stats, dtype=np.int64)  # (N, 2): bytes, time of change in ns

    def crop(self, index: int, place: CropPosition) -> np.ndarray:
        own = int(self.places[index])
        try:
            if self.contents.facts(own) != tuple(self.stats[index]):
                raise BadImageError("changed since it was checked")
            return crop_square(fit(decode_rgb(self.contents.read(own)), self.size), place)
        except BadImageError as error:
            where = self.contents.where(own)
            raise UserError(f"{where}: {error}", remedy="start again, so that the folder is checked anew") from None


def file_stat(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns; BadImageError if the file cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise BadImageError(error.strerror or "cannot be read") from None
    return status.st_size, status.st_mtime_ns


def read_file(path: Path) -> bytes:
    """The content of an image file; BadImageError if it is too large or cannot be read."""
    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size > MAX_BYTES:
                raise BadImageError(f"larger than {MAX_BYTES} bytes")
            return stream.read()
    except OSError as error:
        raise BadImageError(error.strerror or "cannot be read") from None


def square_image(image: Image.Image, size: int) -> torch.Tensor:
    """The centre square of an RGB image, (3, size, size) in [-1, 1]; BadImageError if it is too long and thin."""
    square = crop_square(fit(image, size))  # (size, size, 3)
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1))).float() / 127.5 - 1
