"""Sizes and SHA-256 of the files of a folder, as manifests list them, and how a folder differs from such a list."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, cache_folder, read_json, sha256_of_file
from ldm.runtime.text import printable

logger = logging.getLogger("ldm")
Checksums: TypeAlias = dict[str, dict[str, Any]]  # {"unet/config.json": {"bytes": 123, "sha256": "..."}}


def checksums_of(folder: Path, names: Iterable[str] | None = None) -> Checksums:
    """Size and SHA-256 of all files below `folder`, or of those of these names, but for hidden ones."""
    if names is None:
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in paths]
        names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of_file(folder / name)} for name in names}


def checked_entries(listed: object) -> Checksums:
    """The entries of a manifest that may come from anybody; `ValueError` where it is none."""
    if not isinstance(listed, Mapping):
        raise ValueError("expected an object of files")
    for name, entry in listed.items():
        inside = not str(name).startswith("/") and ".." not in str(name).split("/") and "\\" not in str(name)
        valid = isinstance(entry, Mapping) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)
        if not (inside and valid):
            raise ValueError(f"{printable(name, 80)!r}: expected a file in the folder with bytes and sha256")
    return {str(name): dict(entry) for name, entry in listed.items()}


def differing_files(folder: Path, entries: Checksums, known: Mapping[str, str] | None = None) -> Iterator[str]:
    """A text for each listed file that is missing or not as listed; `known` are SHA-256 that need no reading."""
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif (size := path.stat().st_size) != entry["bytes"]:
            yield f"{name} has {size} bytes instead of {entry['bytes']}"
        elif ((known or {}).get(name) or sha256_of_file(path)) != entry["sha256"]:
            yield f"{name} differs from its SHA-256"


class KnownChecksums:
    """SHA-256 of the files of a folder from earlier commands, valid while size and times of change are the same.

    So the weights of a model are read once for its checksums, and not by each command that samples with it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        key = hashlib.sha256(str(self.folder).encode(errors="surrogateescape")).hexdigest()[:32]
        self.path = cache_folder() / "checksums" / f"{key}.json"
        self._stored = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            content = read_json(self.path)
        except (UserError, OSError):
            return {}
        return content if isinstance(content, dict) else {}

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """{name: SHA-256} of the files that have not changed since they were added."""
        known = {}
        for name in names:
            stored = self._stored.get(name)
            if isinstance(stored, list) and len(stored) == 4 and stored[:3] == self._state(name):
                known[name] = str(stored[3])
        return known

    def add(self, entries: Checksums) -> None:
        """Remember the checksums of files as they are now; a cache folder that cannot be written is only logged."""
        states = {name: self._state(name) for name in entries}
        self._stored |= {name: [*states[name], entries[name]["sha256"]] for name in entries if states[name]}
        try:
            atomic_write_json(self.path, self._stored)
        except OSError as error:
            logger.info("the checksums of %s cannot be cached: %s", printable(self.folder), error)

    def _state(self, name: str) -> list[int]:
        """Size, time of the last writing and of the last change of a file; [] where there is none."""
        try:
            status = (self.folder / name).stat()
        except OSError:
            return []
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
