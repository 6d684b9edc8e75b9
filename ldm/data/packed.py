"""Images that lie many in a file: each is read by its place in the file, so all of them can be had in any order.

Tar shards are read where they are. What is in a shard is found once and remembered in the user's cache folder, for as
long as the shard's size and time of change stay.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldm.data.decode import MAX_BYTES, BadImageError
from ldm.data.pixels import file_stat
from ldm.runtime.files import atomic_write, cache_folder
from ldm.runtime.text import printable

FORMAT = 1  # raise it when an index means something else

logger = logging.getLogger("ldm")


class Sample(NamedTuple):
    """One image of a shard, with what the shard says of it."""

    name: str
    offset: int  # of its bytes in the file
    size: int
    label: int | str | None
    texts: tuple[str, ...] | None


class Shard(NamedTuple):
    """A file of images, encoded ones, one after another."""

    path: Path  # where the bytes are
    source: Path  # what the user named: the same but for parquet, whose images are unpacked
    samples: list[Sample]
    class_names: tuple[str, ...] = ()  # of its number labels, where the file has them


class PackedContents:
    """The images of several shards; see `ldm.data.pixels.Contents`. Files are opened for each read, so workers share
    nothing and none is left open."""

    def __init__(self, shards: Sequence[Shard], names: Sequence[str]) -> None:
        self.paths, self.sources, self.names = [each.path for each in shards], [each.source for each in shards], names
        counts = [len(shard.samples) for shard in shards]
        samples = [sample for shard in shards for sample in shard.samples]
        self.shard = np.repeat(np.arange(len(shards)), counts)  # (N,)
        self.offset = np.array([sample.offset for sample in samples], dtype=np.int64)  # (N,)
        self.size = np.array([sample.size for sample in samples], dtype=np.int64)  # (N,)

    def facts(self, place: int) -> tuple[int, int]:
        return int(self.size[place]), file_stat(self.paths[self.shard[place]])[1]

    def read(self, place: int) -> bytes:
        size = int(self.size[place])
        if size > MAX_BYTES:
            raise BadImageError(f"larger than {MAX_BYTES} bytes")
        try:
            with open(self.paths[self.shard[place]], "rb") as stream:
                stream.seek(int(self.offset[place]))
                content = stream.read(size)
        except OSError as error:
            raise BadImageError(error.strerror or "cannot be read") from None
        if len(content) != size:
            raise BadImageError("cut short")
        return content

    def where(self, place: int) -> str:
        return f"{printable(self.sources[self.shard[place]])}: {printable(self.names[place])}"


def index_path(shard: Path, kind: str, *settings: str) -> Path:
    """Where the index of a shard is remembered; another file when the shard or the settings change."""
    status = shard.stat()
    facts = json.dumps([FORMAT, kind, str(shard.resolve()), status.st_size, status.st_mtime_ns, *settings])
    digest = hashlib.sha256(facts.encode(errors="surrogateescape")).hexdigest()[:32]
    return cache_folder() / f"{kind}-{digest}.json"


def read_index(path: Path) -> tuple[list[Sample], tuple[str, ...]] | None:
    """The samples and class names of an index file; None where it is absent or not one."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())  # ours, and as long as the shard has images
        rows = [
            Sample(str(n), int(o), int(s), label, None if texts is None else tuple(texts))
            for n, o, s, label, texts in content["samples"]
        ]
        return rows, tuple(map(str, content["class_names"]))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def write_index(path: Path, samples: list[Sample], class_names: tuple[str, ...]) -> None:
    """Write an index file; a cache folder that cannot be written is only logged."""
    try:
        atomic_write(path, json.dumps({"samples": samples, "class_names": class_names}))
    except OSError as error:
        logger.info("the index of a shard is not remembered: %s", error)
