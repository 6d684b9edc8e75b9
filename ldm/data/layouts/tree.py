"""The files below a folder, by their relative paths.

Links are followed by every reader alike, for whoever owns the folder placed them (the cache of the Hugging Face hub is
made of them); a path that is written inside a file of the data never leaves the folder: see `inside`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ldm.data.decode import ENDINGS
from ldm.data.report import PassedOver
from ldm.runtime.errors import UserError
from ldm.runtime.text import is_utf8, printable

_LISTS = (".jsonl", ".csv", ".tsv", ".parquet", ".tar")  # they are looked for by name


@dataclass(frozen=True)
class Tree:
    """Files by their paths relative to `folder`, with "/", sorted; and what was not looked at."""

    folder: Path
    files: tuple[str, ...]
    hidden: tuple[str, ...]
    repeated: tuple[str, ...]  # folders that a link leads to once more
    empty: tuple[str, ...]  # folders without anything
    others: tuple[str, ...] = ()  # neither file nor folder

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.files)

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The files with an ending of an image."""
        return tuple(name for name in self.files if PurePosixPath(name).suffix.lower() in ENDINGS)

    def passed_over(self) -> list[PassedOver]:
        """What was not looked at."""
        kinds = (
            ("hidden file or folder", self.hidden, "its name begins with a dot"),
            ("folder", self.repeated, "a link to a folder that is read already"),
            ("folder", self.empty, "empty"),
        )
        passed = [PassedOver(what, len(names), reason, names[0]) for what, names, reason in kinds if names]
        if self.others:
            reason = "a broken link, a pipe or a device"
            passed.append(PassedOver("name", len(self.others), reason, self.others[0], condition=True))
        return passed


def scan(folder: Path) -> Tree:
    """Every file below `folder` that is not hidden. Links are followed; a folder is visited once, so loops end."""
    visited: set[tuple[int, int]] = set()
    files: list[str] = []
    hidden: list[str] = []
    repeated: list[str] = []
    empty: list[str] = []
    others: list[str] = []
    waiting = [(str(folder), "")]
    while waiting:
        path, prefix = waiting.pop()
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in visited:
            repeated.append(prefix.rstrip("/"))
            continue
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            before = len(files), len(waiting)
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    hidden.append(prefix + entry.name)
                elif (kind := _kind(entry)) == "folder":
                    waiting.append((entry.path, f"{prefix}{entry.name}/"))
                elif kind == "file":
                    files.append(prefix + entry.name)
                elif Path(entry.name).suffix in _LISTS:
                    raise UserError(f"{printable(entry.path)}: a broken link, a pipe or a device; expected a file")
                else:
                    others.append(prefix + entry.name)
            if prefix and before == (len(files), len(waiting)):
                empty.append(prefix.rstrip("/"))
    return Tree(folder, *(tuple(sorted(names)) for names in (files, hidden, repeated, empty, others)))


def _kind(entry: os.DirEntry[str]) -> str:
    """folder, file or "" for another; a link is what it leads to. `UserError` for a name that is not UTF-8 text."""
    if not is_utf8(entry.name):
        raise UserError(f"{printable(entry.path)}: its name is not UTF-8 text", remedy="rename it")
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError:  # a link that leads to itself
        return ""


def inside(tree: Tree, parent: str, name: Any, where: str) -> str:
    """The path of an image, relative to the folder, whose name a file in its sub-folder `parent` ("" or "a/b/") gives.

    The name is relative to that sub-folder, or begins with the sub-folder's own name (train/x.jpg in train/), or is
    relative to the whole folder. `UserError` unless it is the path of a file inside the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        problem = f"file_name must be the path of an image inside the folder, got {printable(repr(name), 60)}"
        raise UserError(f"{where}: {problem}")
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in (*path.parts, *windows.parts):
        remedy = 'give a path relative to it, without ".."'
        raise UserError(f'{where}: "{printable(name)}" leaves the folder', remedy=remedy)
    own = PurePosixPath(parent).name if parent else tree.folder.resolve().name
    candidates = [f"{parent}{path}"]
    if len(path.parts) > 1 and path.parts[0] == own:
        candidates.append(parent + "/".join(path.parts[1:]))
    candidates += [str(path)] if parent else []
    for candidate in candidates:
        if candidate in tree.known or _is_file(tree.folder / candidate):
            return candidate
    if _exists(tree.folder / candidates[0]):
        raise UserError(f'{where}: "{printable(name)}" is not a file')
    raise UserError(f'{where}: no file "{printable(name)}" in {printable(tree.folder / parent)}')


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
