"""The images of a folder or of shards with their labels and captions; no image is opened here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.pixels import Contents
from ldm.data.report import NOTHING_PASSED_OVER, Reading
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

MAX_LINE = 2**20  # characters of one line of metadata
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Listing:
    """The images of a folder, by their relative paths (with "/"), in a fixed order."""

    folder: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None  # one for each name
    captions: tuple[tuple[str, ...], ...] | None  # one or more for each name
    class_names: tuple[str, ...]
    contents: Contents
    reading: Reading = NOTHING_PASSED_OVER
    held_out: frozenset[str] | None = None  # the names of the validation split; None: a part, chosen by name


def check_texts(text: Any, where: str) -> tuple[str, ...]:
    """One caption or several; `UserError` for anything else."""
    texts = text if isinstance(text, list) else [text]
    if not texts or not all(isinstance(caption, str) for caption in texts):
        raise UserError(f"{where}: text must be a string or a list of strings, got {printable(json.dumps(text), 60)}")
    return tuple(texts)


def check_label(label: Any, where: str) -> int | str:
    """A class by its name or number; `UserError` for anything else."""
    if isinstance(label, str) and label.strip():
        return label.strip()
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < MAX_CLASSES:
        return label
    problem = f"label must be a name or a number from 0 to {MAX_CLASSES - 1}, got {printable(repr(label), 60)}"
    raise UserError(f"{where}: {problem}")


def number_classes(labels: Sequence[int | str], path: Path) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Labels as numbers, and the class names. Names are numbered in sorted order; numbers are their own names."""
    if not labels:
        return None, ()
    if all(isinstance(label, int) for label in labels):
        return tuple(labels), tuple(map(str, range(max(labels) + 1)))  # type: ignore[arg-type,type-var,operator]
    if any(isinstance(label, int) for label in labels):
        raise UserError(f"{printable(path)}: some labels are names and some are numbers", remedy="give one kind")
    names = sorted(set(labels))  # type: ignore[type-var]
    if len(names) > MAX_CLASSES:
        raise UserError(f"{printable(path)}: {len(names)} different labels, more than {MAX_CLASSES}")
    number = {name: index for index, name in enumerate(names)}
    return tuple(number[label] for label in labels), tuple(names)  # type: ignore[arg-type]
