"""A data set of stored images: folders and torchvision's sets."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ldm.data.config import DataConfig
from ldm.data.dataset import Example, Key, random_words
from ldm.data.pixels import Pixels
from ldm.data.report import DataReport
from ldm.runtime.files import fingerprint


class PixelData:
    """One split of stored images; see `ldm.data.ImageData`.

    `rows[i]` is the index of image i in `pixels`; `labels` and `captions` are those of the split.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        *,
        name: str,
        pixels: Pixels,
        rows: Sequence[int],
        labels: Sequence[int] | None,
        captions: Sequence[tuple[str, ...]] | None,
        class_names: tuple[str, ...],
        image_fingerprint: str,
        report: DataReport,
        file_names: Sequence[str] | None = None,
    ) -> None:
        self.name, self.split, self.class_names = name, split, class_names
        self.image_size, self.crop, self.flip = config.image_size, config.crop, config.flip
        self.has_captions = captions is not None
        self.attribute_names: dict[str, tuple[str, ...]] = {}
        self.image_fingerprint, self.report = image_fingerprint, report
        self.fingerprint = fingerprint(
            {
                "images": image_fingerprint,
                "labels": None if labels is None else list(labels),
                "captions": None if captions is None else list(captions),
                "class_names": class_names,
                "preprocessing": [config.image_size, config.crop, config.flip],
            }
        )
        self._pixels = pixels
        self._rows = np.array(rows, dtype=np.int64)
        self._labels = None if labels is None else np.array(labels, dtype=np.int64)
        self._captions, self._file_names = captions, file_names

    def __len__(self) -> int:
        return len(self._rows)

    def label(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return () if self._captions is None else self._captions[index]

    def file_name(self, index: int) -> str:
        """The path of image `index` inside its folder; "" if there are no files."""
        return "" if self._file_names is None else self._file_names[index]

    def attributes(self, index: int) -> dict[str, Any]:
        return {}

    def __getitem__(self, key: Key) -> Example:
        index, seed = key if isinstance(key, tuple) else (key, None)
        index = range(len(self))[operator.index(index)]  # negative indices, IndexError
        captions = self.captions(index) or ("",)
        if seed is None:
            square, caption = self._pixels.crop(int(self._rows[index]), None), captions[0]
        else:
            word = random_words(index, seed)
            position = (word[0] / 2**32, word[1] / 2**32) if self.crop == "random" else None
            square = self._pixels.crop(int(self._rows[index]), position)  # (H, W, 3)
            square = square[:, ::-1] if self.flip and word[2] & 1 else square
            caption = captions[word[3] * len(captions) >> 32]
        image = torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)))  # (3, H, W)
        return Example(image.to(torch.float32).div_(127.5).sub_(1.0), self.label(index), caption, index)
