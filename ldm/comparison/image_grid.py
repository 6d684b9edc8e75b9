"""One image of all methods side by side (a row a seed, a column a method), or of all models below each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.runtime.files import open_regular
from ldm.runtime.images import check_finite, save_png, to_pil, to_uint8
from ldm.runtime.text import replace_unprintable

_MIN_SIDE = 96  # pixels; smaller images are magnified
_GAP = 4
_FONT_SIZE = 12
_LINE = _FONT_SIZE + 3
_LABEL_WIDTH = 160  # of the rows' labels


def save_sample_row(images: Tensor, path: Path) -> None:
    """Store images (N, 3, H, W) in [-1, 1] as one lossless PNG, below each other."""
    check_finite(images)
    column = torch.cat(list(to_uint8(images)), dim=1)  # (3, N H, W)
    save_png(to_pil(column), path)


def save_side_by_side(
    sample_rows: Sequence[Path], labels: Sequence[str], conditions: Sequence[str], path: Path
) -> None:
    """Join stored rows of `len(conditions)` samples into one PNG: a column a row, its label above, conditions at the
    left."""
    columns = [list(_read(row, len(conditions))) for row in sample_rows]
    save_png(_grid(columns, labels, conditions), path, {"methods": "; ".join(labels)})


def save_below_each_other(sample_rows: Sequence[Path], labels: Sequence[str], path: Path) -> None:
    """Join stored rows of equally many square images into one PNG: below each other, with their labels at the left."""
    columns = list(zip(*map(_read, sample_rows), strict=True))
    save_png(_grid(columns, [""] * len(columns), labels), path, {"rows": "; ".join(labels)})


def _grid(columns: Sequence[Sequence[np.ndarray]], heads: Sequence[str], labels: Sequence[str]) -> Image.Image:
    """Columns of images (H, W, 3) under their heads, the labels of the rows at the left."""
    side = columns[0][0].shape[1]
    size = side * max(1, math.ceil(_MIN_SIDE / side))
    step = size + _GAP
    font = ImageFont.load_default(size=_FONT_SIZE)
    head_lines = [_wrap(head, font, size, 3) for head in heads]
    top = 2 * _GAP + _LINE * max(map(len, head_lines)) if any(heads) else 0
    left = _LABEL_WIDTH if any(labels) else _GAP
    grid = Image.new("RGB", (left + step * len(columns), top + step * len(labels)), "white")
    canvas = ImageDraw.Draw(grid)
    for k, (column, lines) in enumerate(zip(columns, head_lines, strict=True)):
        for n, line in enumerate(lines):
            canvas.text((left + k * step, _GAP + n * _LINE), line, fill="black", font=font)
        for r, pixels in enumerate(column):
            image = Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)
            grid.paste(image, (left + k * step, top + r * step))
    for r, label in enumerate(labels):
        for n, line in enumerate(_wrap(label, font, left - 2 * _GAP, max(1, size // _LINE))):
            canvas.text((_GAP, top + r * step + n * _LINE), line, fill="black", font=font)
    return grid


def _read(path: Path, count: int = 0) -> np.ndarray:
    """The images of a stored row, (N, H, W, 3) bytes; without `count` they are square."""
    with open_regular(path) as stream, Image.open(stream, formats=("PNG",)) as image:
        pixels = np.asarray(image)  # (N H, W, 3)
    return pixels.reshape(count or len(pixels) // pixels.shape[1], -1, *pixels.shape[1:])


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, max_lines: int) -> list[str]:
    """Printable text in at most `max_lines` lines that fit into `width` pixels."""
    words = replace_unprintable(text[:500]).split()
    lines: list[str] = []
    for word in words:
        while len(word) > 1 and font.getlength(word) > width:
            word = word[:-1]
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines[:max_lines]
