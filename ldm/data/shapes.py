"""Built-in data: one antialiased shape on a plain background, rendered on the fly.

Image i of a split depends on (seed, split, i) alone: neither on the number of images nor on the order of access.
Object colours are vivid, backgrounds are dark, pale or grey, so that they differ even where they share a name (a blue
circle on a blue background is bright blue on dark blue).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ldm.data.dataset import Example, Key, random_words
from ldm.data.report import DataReport, Reading, count_classes
from ldm.runtime.errors import UserError
from ldm.runtime.text import suggest

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = ("small", "large")
COLOURS = {  # sRGB, 0..255
    "red": (225, 25, 30), "orange": (255, 130, 0), "yellow": (255, 220, 0), "green": (40, 200, 60),
    "cyan": (0, 225, 240), "blue": (35, 90, 255), "purple": (150, 40, 215), "pink": (255, 105, 190),
}  # fmt: skip
BACKGROUNDS = {
    "white": (250, 250, 250), "black": (8, 8, 8), "grey": (128, 128, 128), "brown": (96, 60, 36),
    "beige": (228, 208, 172), "lavender": (196, 190, 238), "blue": (20, 30, 105), "green": (16, 74, 48),
}  # fmt: skip
RADII = {"small": (0.21, 0.24), "large": (0.28, 0.32)}  # of the side: radius of a disc of about the same weight
MIN_IMAGE_SIZE = 16
VERSION = 1  # part of the fingerprint: raise it when an image or caption changes

SPLITS = ("train", "validation")
_COLOUR_TABLE = np.array(list(COLOURS.values()), dtype=np.float32) / 127.5 - 1
_BACKGROUND_TABLE = np.array(list(BACKGROUNDS.values()), dtype=np.float32) / 127.5 - 1
_RADIUS_TABLE = np.array([RADII[size] for size in SIZES])


class ShapesData:
    """Procedural images with class label (the shape), captions and attributes; see `ldm.data.ImageData`."""

    name = "shapes"
    crop, flip = "center", False
    class_names = SHAPES
    has_captions = True
    attribute_names: Mapping[str, tuple[str, ...]] = {
        "shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES, "background": tuple(BACKGROUNDS),
    }  # fmt: skip

    def __init__(
        self, split: str = "train", image_size: int = 32, size: tuple[int, int] = (8192, 1024), seed: int = 0
    ) -> None:
        if split not in SPLITS:
            raise UserError(f'shapes: unknown split "{split}"', remedy=suggest(split, SPLITS))
        if image_size < MIN_IMAGE_SIZE:
            raise UserError(f"shapes: image size must be at least {MIN_IMAGE_SIZE} pixels, got {image_size}")
        if min(size) < 1:
            raise UserError(f"shapes: the numbers of training and validation images must be positive, got {size}")
        if seed < 0:
            raise UserError(f"shapes: seed must not be negative, got {seed}")
        self.split, self.image_size, self.seed = split, image_size, seed
        stream = SPLITS.index(split)
        # Rows are drawn in order from one stream of the split: row i is the same for every number of rows.
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream))))
        u = generator.random((size[stream], 7))  # (N, 7) in [0, 1)
        choices = (u[:, :4] * [len(SHAPES), len(COLOURS), len(SIZES), len(BACKGROUNDS)]).astype(np.int64)  # (N, 4)
        self._shape, self._colour, self._size, self._background = choices.T
        low, high = _RADIUS_TABLE[self._size].T
        self._radius = (low + (high - low) * u[:, 4]) * image_size  # pixels
        extent = self._radius * 1.15 + 2  # a star's tips are the farthest; plus the soft edge and one free pixel
        self._centre = extent[:, None] + (image_size - 2 * extent[:, None]) * u[:, 5:7]  # (N, 2): x, y in pixels

    @property
    def fingerprint(self) -> str:
        key = ("shapes", VERSION, self.split, self.image_size, len(self), self.seed)
        return hashlib.sha256(repr(key).encode()).hexdigest()

    @property
    def image_fingerprint(self) -> str:
        return self.fingerprint

    @property
    def report(self) -> DataReport:
        captions = len(self) * len(_CAPTION_PLAN)
        return DataReport(
            "shapes",
            Reading(f"drawn from seed {self.seed}, the {self.split} split"),
            len(self),
            self.image_size,
            None,
            "images drawn from another stream (`shapes_validation`)",
            count_classes(self._shape.tolist(), SHAPES),
            captioned=len(self),
            captions=captions,
        )

    def __len__(self) -> int:
        return len(self._shape)

    def label(self, index: int) -> int:
        return int(self._shape[index])

    def attributes(self, index: int) -> dict[str, str]:
        choices = self._shape[index], self._colour[index], self._size[index], self._background[index]
        return {name: values[k] for (name, values), k in zip(ShapesData.attribute_names.items(), choices, strict=True)}

    def captions(self, index: int) -> tuple[str, ...]:
        """The full caption, then true captions with fewer and fewer attributes."""
        attributes = self.attributes(index)
        return tuple(describe(**{name: attributes[name] for name in names}) for names in _CAPTION_PLAN)

    def __getitem__(self, key: Key) -> Example:
        """Of an index: the full caption. Of (index, seed): one of the captions, chosen by both."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        index = range(len(self))[index]  # negative indices, IndexError
        captions = self.captions(index)
        choice = 0 if seed is None else random_words(index, seed)[3] * len(captions) >> 32
        image = torch.from_numpy(self.render_batch([index])[0])
        return Example(image=image, label=self.label(index), caption=captions[choice], index=index)

    def render_batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images `indices` as float32 (B, 3, H, W) in [-1, 1]."""
        i = np.asarray(indices, dtype=np.int64)
        grid = (np.arange(self.image_size) + 0.5).astype(np.float32)
        centre, r = self._centre[i].astype(np.float32), self._radius[i].astype(np.float32)
        x = (grid - centre[:, :1])[:, None, :]  # (B, 1, W), pixels from the centre
        y = (grid - centre[:, 1:])[:, :, None]  # (B, H, 1), downwards
        cover = np.empty((len(i), 1, self.image_size, self.image_size), dtype=np.float32)
        for shape in np.unique(self._shape[i]) if len(i) > 1 else self._shape[i]:
            own = self._shape[i] == shape
            distance = _DISTANCES[shape](x[own], y[own], r[own, None, None])  # (b, H, W), pixels, negative inside
            cover[own, 0] = np.clip(0.5 - distance, 0, 1)  # share of the pixel that a straight edge covers
        back = _BACKGROUND_TABLE[self._background[i], :, None, None]  # (B, 3, 1, 1)
        front = _COLOUR_TABLE[self._colour[i], :, None, None]
        return back + cover * (front - back)


def describe(
    shape: str | None = None, colour: str | None = None, size: str | None = None, background: str | None = None
) -> str:
    """A caption of the given attributes: `a large red circle on a blue background`, `a small star`, `red`."""
    if shape is None and background is None and not (size and colour):
        return size or colour or ""
    words = [word for word in (size, colour, shape or "shape") if word]
    text = f"{_article(words[0])} {' '.join(words)}"
    return text if background is None else f"{text} on {_article(background)} {background} background"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


_CAPTION_PLAN: tuple[tuple[str, ...], ...] = (
    ("size", "colour", "shape", "background"), ("size", "colour", "shape"), ("colour", "shape", "background"),
    ("size", "shape", "background"), ("colour", "shape"), ("size", "shape"), ("shape",), ("colour",),
)  # fmt: skip


def _circle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - r


def _ring(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.8 * r) - 0.24 * r


def _square(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.88 * r


def _cross(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    long, short = 1.05 * r, 0.33 * r
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - long, y - short), np.maximum(x - short, y - long))


def _triangle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    # Equilateral, pointing up, centred in its bounding box of height 2r: three half-planes.
    base = y - 0.95 * r
    sides = np.abs(x) * (np.sqrt(3) / 2).astype(np.float32) - (y + 0.95 * r) * np.float32(0.5)
    return np.maximum(base, sides)


def _star(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    # Five points, the first up. Folded into the wedge from a tip (angle 0) to a notch (angle pi/5): one edge is left.
    fifth = np.float32(2 * np.pi / 5)
    rho, angle = np.sqrt(x * x + y * y), np.arctan2(x, -y)
    angle = np.abs(angle - fifth * np.round(angle / fifth))  # [0, pi/5]
    tip, notch = 1.15 * r, 0.5 * r
    along = np.stack(np.broadcast_arrays(notch * np.cos(fifth / 2) - tip, notch * np.sin(fifth / 2)))
    normal = np.stack((along[1], -along[0])) / np.sqrt((along**2).sum(0))  # away from the centre
    return (rho * np.cos(angle) - tip) * normal[0] + rho * np.sin(angle) * normal[1]


_DISTANCES = (_circle, _square, _triangle, _star, _ring, _cross)
