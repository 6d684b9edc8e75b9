"""Files with many images (shards): each image is read at its offset, so the order of access is free.

Tar shards are read in place. The index of a shard is built once and cached in the user's cache folder, valid while the
shard's size and time of change are the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypedDict

import msgspec
import numpy as np

from ldm.data.decode import MAX_BYTES, BadImageError
from ldm.data.pixels import FileStat, file_stat
from ldm.data.report import NOTHING_PASSED_OVER, PassedOver, Reading
from ldm.runtime.files import atomic_write, cache_folder
from ldm.runtime.text import printable

FORMAT = 2  # raise it when the meaning of an index changes

logger = logging.getLogger("ldm")


class Sample(NamedTuple):
    """One image of a shard, with its label and captions."""

    name: str
    offset: int  # of its bytes in the file
    size: int
    label: int | str | None
    texts: tuple[str, ...] | None


class _Index(TypedDict):
    """The contents of an index file."""

    samples: list[Sample]
    class_names: tuple[str, ...]
    layout: str
    fields: tuple[str, ...]
    passed_over: tuple[PassedOver, ...]


class Shard(NamedTuple):
    """A file of encoded images, one after another."""

    path: Path  # the file with the bytes
    source: Path  # the file that the user named: another one for parquet, whose images are unpacked
    samples: list[Sample]
    class_names: tuple[str, ...] = ()  # of its number labels, where the file has them
    reading: Reading = NOTHING_PASSED_OVER


class PackedContents:
    """The images of several shards; see `ldm.data.pixels.Contents`. A file is opened for each read, so that workers
    share no handle."""

    def __init__(self, shards: Sequence[Shard], names: Sequence[str]) -> None:
        self.paths, self.sources = [shard.path for shard in shards], [shard.source for shard in shards]
        self.names = names
        counts = [len(shard.samples) for shard in shards]
        samples = [sample for shard in shards for sample in shard.samples]
        self.shard = np.repeat(np.arange(len(shards)), counts)  # (N,)
        self.offset = np.array([sample.offset for sample in samples], dtype=np.int64)  # (N,)
        self.size = np.array([sample.size for sample in samples], dtype=np.int64)  # (N,)

    def stat(self, index: int) -> FileStat:
        return int(self.size[index]), file_stat(self.paths[self.shard[index]])[1]

    def read(self, index: int) -> bytes:
        size = int(self.size[index])
        if size > MAX_BYTES:
            raise BadImageError(f"larger than {MAX_BYTES} bytes")
        try:
            with open(self.paths[self.shard[index]], "rb") as stream:
                stream.seek(int(self.offset[index]))
                content = stream.read(size)
        except OSError as error:
            raise BadImageError(error.strerror or "cannot be read") from None
        if len(content) != size:
            raise BadImageError("cut short")
        return content

    def where(self, index: int) -> str:
        return f"{printable(self.sources[self.shard[index]])}: {printable(self.names[index])}"


def index_path(shard: Path, kind: str, *settings: str) -> Path:
    """The file in the cache folder for the index of a shard; another one when the shard or the settings change."""
    status = shard.stat()
    key = json.dumps([FORMAT, kind, str(shard.resolve()), status.st_size, status.st_mtime_ns, *settings])
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
    return cache_folder() / f"{kind}-{digest}.json"


Index = tuple[list[Sample], tuple[str, ...], Reading]  # of a shard: samples, class names, how they were found


def read_index(path: Path) -> Index | None:
    """The content of an index file; None where it is absent or not one."""
    if not path.is_file():
        return None
    try:
        digest, _, text = path.read_bytes().partition(b"\n")  # written by us; it grows with the number of images
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise ValueError("it differs from its SHA-256")
        content = msgspec.json.decode(text, type=_Index)
        reading = Reading(content["layout"], content["fields"], content["passed_over"])
        return content["samples"], content["class_names"], reading
    except (OSError, ValueError) as error:  # msgspec's among them
        logger.warning("%s: damaged (%s), the shard is indexed again", path, printable(error, 80))
        return None


def write_index(path: Path, samples: list[Sample], class_names: tuple[str, ...], reading: Reading) -> None:
    """Write an index file; a cache folder that cannot be written is only logged."""
    try:
        content = {"samples": samples, "class_names": class_names, **asdict(reading)}
        text = json.dumps(content).encode()
        atomic_write(path, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    except OSError as error:
        logger.info("the index of a shard cannot be cached: %s", error)
