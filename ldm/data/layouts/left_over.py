"""The files of a folder that are not read, by kind, with the reason."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath

from ldm.data.decode import ENDINGS
from ldm.data.layouts.caption_files import CAPTION_ENDINGS
from ldm.data.layouts.tree import Tree
from ldm.data.report import PassedOver, grouped_by_ending

_LISTS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".caption", ".xml", ".npy", ".npz", ".xlsx", ".cls",
          ".cap", ".mat", ".yaml", ".yml", ".arrow")  # fmt: skip
_OTHER_IMAGES = (".jp2", ".svg", ".tga", ".exr", ".dng", ".psd", ".jfif")
_SHARDS = (".tar", ".zip", ".gz", ".tgz", ".zst", ".7z", ".rar")
_ABOUT = re.compile(r"(readme|licen[cs]e|copying|changelog|citation|requirements|sha\d*sums?|md5sums?)", re.IGNORECASE)


def left_over(tree: Tree, used: Collection[str], images: Mapping[str, Sequence[str]]) -> list[PassedOver]:
    """What is not in `used`: `images` by the reason, other files by their endings.

    Files that may hold labels or captions, and images of formats that are not read, are marked as conditions.
    """
    passed = [PassedOver("image", len(names), reason, names[0]) for reason, names in images.items() if names]
    accounted = {*used, *(name for names in images.values() for name in names)}
    groups: dict[tuple[str, bool], list[str]] = {}
    stems = {name[: -len(PurePosixPath(name).suffix)] for name in tree.images}
    for file in tree.files:
        if file not in accounted:
            groups.setdefault(_reason(file, stems), []).append(file)
    for (reason, condition), files in groups.items():
        passed += [PassedOver(what, count, reason, example, condition)
                   for what, count, example in grouped_by_ending(files)]  # fmt: skip
    return passed + tree.passed_over()


def _reason(file: str, stems: Collection[str]) -> tuple[str, bool]:
    """Why a file is not read, and whether that may be the loss of a condition or of images."""
    path = PurePosixPath(file)
    ending = path.suffix.lower()
    if ending in ENDINGS:
        return "an image that no rule reads", True
    if ending in _OTHER_IMAGES:
        return "an image format that is not read here", True
    if ending in _SHARDS:
        return "packed files beside images are not read; name them by `data`", True
    if ending not in _LISTS or _ABOUT.match(path.name):
        return "neither an image nor a list", False
    if file.removesuffix(path.suffix) in stems:
        endings = " and ".join(CAPTION_ENDINGS)
        return f"beside images, but only {endings} files are read as captions (`captions_from`)", True
    return "may hold captions or classes; name a list by `metadata_file`, caption files by `captions_from`", True
