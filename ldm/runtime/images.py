"""Images (B, 3, H, W) in [-1, 1] to pixels, grids and PNG files."""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldm.runtime.files import atomic_write


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1], clipped, to bytes of the same shape and device: round(127.5 * (x + 1))."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """One image (C, H, W) in [-1, 1], or already uint8, with C of 1 or 3; `FloatingPointError` if it is not finite."""
    check_finite(image)
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    array = pixels.permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def check_finite(images: Tensor) -> None:
    """A byte has no NaN: it would be black."""
    if not images.isfinite().all():
        raise FloatingPointError("an image has numbers that are not finite")


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] row by row on white: bytes (3, H', W'); `FloatingPointError` if not finite."""
    check_finite(images)
    pixels = to_uint8(images).cpu()
    count, channels, height, width = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for number, image in enumerate(pixels):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def enlarged(pixels: Tensor, least: int = 384) -> Image.Image:
    """Bytes (3, H, W) as PIL image; small images are magnified by a whole number to `least` pixels or more."""
    image = to_pil(pixels)
    factor = max(1, math.ceil(least / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def save_png(image: Image.Image, path: str | Path, text: Mapping[str, str] | None = None) -> None:
    """Write a PNG atomically, with `text` in its metadata."""
    info = PngInfo()
    for name, value in (text or {}).items():
        info.add_itxt(name, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    atomic_write(path, buffer.getvalue())


def save_grid(images: Tensor, path: str | Path, columns: int | None = None) -> None:
    """Write images (N, 3, H, W) in [-1, 1] as one magnified grid."""
    save_png(enlarged(grid(images, columns)), path)


class PngWriter:
    """Writes PNGs in threads, while the next images are made; leaving the `with` block waits for all of them.

    The bytes are those of `save_png`. The first failure, in the order of the images, is raised by a later `save` or
    on leaving, and writes that have not begun by then are dropped; a signal drops none. The queue holds at most
    `waiting` images.
    """

    def __init__(self, threads: int = 4, waiting: int = 64) -> None:
        self._pool = ThreadPoolExecutor(threads, "png")
        self._pending: deque[Future[None]] = deque()
        self._waiting = waiting

    def __enter__(self) -> PngWriter:
        return self

    def save(self, image: Tensor, path: str | Path, text: Mapping[str, str] | None = None) -> None:
        """Queue one image (C, H, W), as `to_pil` takes it. The tensor must not change afterwards."""
        while self._pending and (self._pending[0].done() or len(self._pending) >= self._waiting):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(lambda: save_png(to_pil(image), path, text)))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._pending and (kind is None or issubclass(kind, KeyboardInterrupt)):  # what is made is kept
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)


def from_pil(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) in [-1, 1]."""
    array = np.array(image.convert("RGB"))  # (H, W, 3)
    return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1
