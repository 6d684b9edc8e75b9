"""A folder of images as it lies there: every file in its own size, nothing cropped."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from ldm.data.dataset import Example, Key
from ldm.data.decode import BadImageError, decode_rgb, upright_size
from ldm.data.folder import list_folder
from ldm.data.pixels import read_file
from ldm.data.report import DataReport, PassedOver
from ldm.data.verify import report_bad
from ldm.evaluation.features.small_network import fit_size
from ldm.runtime.errors import UserError
from ldm.runtime.images import from_pil
from ldm.runtime.progress import progress
from ldm.runtime.text import printable

logger = logging.getLogger("ldm")


class FolderImages:
    """An unlabelled `ImageData` over all images of a folder; `images()` gives them in their own sizes.

    `grid.png` and `reconstruction.png`, which `ldm sample` writes beside its images, are not among them.
    """

    split = "train"
    crop = "center"
    flip = False
    class_names: tuple[str, ...] = ()
    attribute_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    has_captions = False

    def __init__(self, folder: str | Path, resize: int | None = None, max_bad: int = 0) -> None:
        """`max_bad` files may be no whole images: they are named and left out."""
        self.folder, self.resize = Path(folder), resize
        sampled = (self.folder / "settings.json").is_file()
        if (self.folder / "unfinished.json").is_file():
            logger.warning("%s: its samples are not finished; their command goes on", printable(self.folder))
        listing = list_folder(self.folder, images_only=True)
        if listing.held_out is not None:
            problem = f"{printable(self.folder)}: its sub-folders are splits ({listing.reading.layout})"
            raise UserError(problem, remedy="name one of them")
        own = [name for name in ("grid.png", "reconstruction.png") if sampled and name in listing.names]
        self.names = tuple(name for name in listing.names if name not in own)
        self._reading = listing.reading
        if own:
            beside = PassedOver("image", len(own), "written by `ldm sample` beside its images", own[0])
            self._reading = replace(self._reading, passed_over=(*self._reading.passed_over, beside))
        if max_bad:
            self._leave_out_bad(max_bad)
        if len(self.names) < 2:
            raise UserError(f"{printable(self.folder)}: holds {len(self.names)} image, a distance needs two or more")
        self.name = self.folder.resolve().name

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: Key) -> Example:
        index = range(len(self))[key[0] if isinstance(key, tuple) else key]
        image = fit_size(self._read(index)[None], self.image_size)[0]
        return Example(image=image, label=-1, caption="", index=index)

    def label(self, index: int) -> int:
        return -1

    def captions(self, index: int) -> tuple[str, ...]:
        return ()

    def attributes(self, index: int) -> dict[str, str]:
        return {}

    @cached_property
    def image_size(self) -> int:
        """The shorter side of the first image, or what all are resized to."""
        return self.resize or min(self._read(0).shape[-2:])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the files."""
        digest = hashlib.sha256()
        for name in self.names:
            content = hashlib.sha256(read_file(self.folder / name)).hexdigest()
            digest.update(f"{len(name.encode())} {name} {content}\n".encode())
        return digest.hexdigest()

    @property
    def image_fingerprint(self) -> str:
        return self.fingerprint

    @cached_property
    def report(self) -> DataReport:
        """What is compared; classes and captions are not used."""
        sizes = sorted(self.sizes(), key=math.prod)
        source = str(self.folder)
        return DataReport(source, self._reading, len(self), self.image_size, (sizes[0], sizes[-1]), "none")

    def sizes(self) -> Counter[tuple[int, int]]:
        """How many images there are of each (H, W), from the heads of the files; `UserError` names one that is none."""
        return self._sizes

    @cached_property
    def _sizes(self) -> Counter[tuple[int, int]]:
        sizes: Counter[tuple[int, int]] = Counter()
        for name in self.names:
            try:
                sizes[upright_size(read_file(self.folder / name))] += 1
            except BadImageError as error:
                raise self._refused(name, error) from None
        return sizes

    def images(self, batch_size: int, label: str) -> Iterator[Tensor]:
        """Batches (b, 3, H, W) in [-1, 1], neighbours of one size together; all of one size where they are resized."""
        batch: list[Tensor] = []
        for index in progress(range(len(self)), label):
            image = self._read(index)
            if self.resize:
                image = fit_size(image[None], self.resize)[0]
            if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
                yield torch.stack(batch)
                batch = []
            batch.append(image)
        yield torch.stack(batch)

    def _read(self, index: int) -> Tensor:
        try:
            return from_pil(decode_rgb(read_file(self.folder / self.names[index])))
        except BadImageError as error:
            raise self._refused(self.names[index], error) from None

    def _refused(self, name: str, error: BadImageError) -> UserError:
        remedy = "remove or replace it, or leave out so many by `max_bad_images` N"
        return UserError(f"{printable(self.folder / name)}: {error}", remedy=remedy)

    def _leave_out_bad(self, max_bad: int) -> None:
        """Decode every file; `UserError` where more than `max_bad` are not whole images."""
        bad: dict[str, BadImageError] = {}
        for name in progress(self.names, "checking images"):
            try:
                decode_rgb(read_file(self.folder / name))
            except BadImageError as error:
                bad[name] = BadImageError(str(error))  # whose traceback does not hold the content
        report_bad(self.folder, len(self.names), bad, max_bad)
        self.names = tuple(name for name in self.names if name not in bad)
        if bad:
            name, reason = next(iter(bad.items()))
            passed = PassedOver("image", len(bad), f"cannot be read ({printable(reason, 160)})", name)
            self._reading = replace(self._reading, passed_over=(*self._reading.passed_over, passed))
