"""One picture of all methods side by side (a row a seed, a column a method), or of all models below each other."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.runtime.files import atomic_write
from ldm.runtime.images import save_png, to_pil, to_uint8
from ldm.runtime.text import replace_unprintable

_LEAST = 96  # pixels of a magnified image's side
_GAP = 4
_TEXT = 12


def save_strip(images: Tensor, path: Path) -> None:
    """Store images (N, 3, H, W) in [-1, 1] below each other, without loss."""
    column = torch.cat(list(to_uint8(images)), dim=1)  # (3, N H, W)
    buffer = io.BytesIO()
    to_pil(column).save(buffer, format="PNG")
    atomic_write(path, buffer.getvalue())


def side_by_side(strips: Sequence[Path], labels: Sequence[str], rows: Sequence[str], path: Path) -> None:
    """Join stored strips of `len(rows)` images under their labels into one PNG, the rows' conditions at the left."""
    columns = [_read(strip, len(rows)) for strip in strips]
    side = columns[0].shape[-2]
    factor = max(1, math.ceil(_LEAST / side))
    cell = side * factor + _GAP
    font = ImageFont.load_default(size=_TEXT)
    heads = [_wrapped(label, font, cell - _GAP, 3) for label in labels]
    top = _GAP + (_TEXT + 3) * max(len(lines) for lines in heads) + _GAP
    left = 160 if any(rows) else _GAP
    sheet = Image.new("RGB", (left + cell * len(columns), top + cell * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (column, lines) in enumerate(zip(columns, heads, strict=True)):
        for n, line in enumerate(lines):
            draw.text((left + k * cell, _GAP + n * (_TEXT + 3)), line, fill="black", font=font)
        for r, pixels in enumerate(column):
            image = Image.fromarray(pixels).resize((side * factor, side * factor), Image.Resampling.NEAREST)
            sheet.paste(image, (left + k * cell, top + r * cell))
    for r, text in enumerate(rows):
        for n, line in enumerate(_wrapped(text, font, left - 2 * _GAP, max(1, (cell - _GAP) // (_TEXT + 3)))):
            draw.text((_GAP, top + r * cell + n * (_TEXT + 3)), line, fill="black", font=font)
    save_png(sheet, path, {"methods": "; ".join(labels)})


def below_each_other(strips: Sequence[Path], labels: Sequence[str], path: Path) -> None:
    """Join stored strips of equally many images into one PNG: a row a strip, its label at the left."""
    rows = [_read(strip) for strip in strips]
    side = rows[0].shape[-2]
    factor = max(1, math.ceil(_LEAST / side))
    cell = side * factor + _GAP
    font = ImageFont.load_default(size=_TEXT)
    left = 160
    sheet = Image.new("RGB", (left + cell * len(rows[0]), cell * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for r, (row, label) in enumerate(zip(rows, labels, strict=True)):
        for n, line in enumerate(_wrapped(label, font, left - 2 * _GAP, max(1, (cell - _GAP) // (_TEXT + 3)))):
            draw.text((_GAP, r * cell + n * (_TEXT + 3)), line, fill="black", font=font)
        for k, pixels in enumerate(row):
            image = Image.fromarray(pixels).resize((side * factor, side * factor), Image.Resampling.NEAREST)
            sheet.paste(image, (left + k * cell, r * cell))
    save_png(sheet, path, {"rows": "; ".join(labels)})


def _read(path: Path, count: int = 0) -> np.ndarray:
    """The images of a strip, (N, H, W, 3) bytes; without `count` they are square."""
    with Image.open(path, formats=("PNG",)) as image:
        pixels = np.asarray(image)  # (N H, W, 3)
    return pixels.reshape(count or len(pixels) // pixels.shape[1], -1, *pixels.shape[1:])


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int) -> list[str]:
    """Printable text in at most `most` lines that fit into `width` pixels."""
    words = replace_unprintable(text[:500]).split()
    lines: list[str] = []
    for word in words:
        while len(word) > 1 and font.getlength(word) > width:
            word = word[:-1]
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines[:most]
