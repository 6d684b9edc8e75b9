"""Every image of a folder is decoded once before training starts: what is broken is known then, not at step 9,000.

A folder whose pixels fit into `RAM_LIMIT` at the wanted size stays in memory, as uint8. Of a larger one the pixels
are read again for every example, and the verdict on each whole file is remembered between runs, so that the next check
decodes only new and changed files. A file that changes after the check is an error: nothing ever takes its place.
"""

from __future__ import annotations

import hashlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL

from ldm.data.decode import VERSION, BadImageError, crop_square, decode_rgb, fit
from ldm.data.listing import Listing
from ldm.data.pixels import CropPosition, FilePixels, Pixels, RamPixels
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write, cache_folder
from ldm.runtime.progress import progress
from ldm.runtime.text import printable

RAM_LIMIT = 2**30  # bytes of decoded pixels
_NAMED = 5  # bad files named in a message
_SMALL_FILE = 16 * 2**10  # bytes; below it threads cost more than they give
_BLOCK = 1024  # files given to the threads at a time
_DIGEST = 16  # bytes; a record is the digest of (name, size, time of change), then that of the content
_SAVE_EVERY = 20_000  # files, so that an interrupted check is not lost

logger = logging.getLogger("ldm")

Found = tuple[bytes, np.ndarray | None] | BadImageError  # content digest and, where memory shall hold them, pixels


class VerifiedFolder:
    """The whole images of a folder: their places in the listing, a digest of each one's content, their pixels."""

    def __init__(self, kept: list[int], digests: list[bytes], pixels: Pixels) -> None:
        self.kept, self.digests, self.pixels = kept, digests, pixels

    def crop(self, index: int, place: CropPosition) -> np.ndarray:
        """A square of kept image `index`: uint8 (size, size, 3)."""
        return self.pixels.crop(index, place)


_known: weakref.WeakValueDictionary[tuple[object, ...], VerifiedFolder] = weakref.WeakValueDictionary()


def verify(listing: Listing, size: int, *, crop: str, max_bad: int) -> VerifiedFolder:
    """Decode every file; UserError if more than `max_bad` of them are not whole images.

    The splits of a folder share one result, as long as one of them is in use and no file has changed.
    """
    facts = [_facts(listing, place) for place in range(len(listing.names))]
    key = (listing.folder.resolve(), listing.names, tuple(facts), size, crop, max_bad)
    known = _known.get(key)
    if known is None:
        known = _known[key] = _verify(listing, facts, size, crop, max_bad)
    return known


def _verify(listing: Listing, facts: list[tuple[int, int]], size: int, crop: str, max_bad: int) -> VerifiedFolder:
    checked = CheckedFiles(listing.folder)
    to_ram = len(facts) * size * size * 3 <= RAM_LIMIT  # random crops need more: then it may turn out too little below
    if not to_ram:
        checked.load()

    def look(place: int) -> Found:
        name = listing.names[place]
        known = checked.get(name, facts[place])
        if known is not None:
            return known, None
        try:
            content = listing.contents.read(place)
            array = fit(decode_rgb(content), size)
        except BadImageError as error:
            return error
        array = array if crop == "random" else crop_square(array)
        return content_digest(content), array if to_ram else None

    threads = 1 if sum(length for length, _ in facts) < _SMALL_FILE * len(facts) else _cpus()
    looks = progress(_in_order(look, len(facts), threads), "checking images", total=len(facts))
    pixels, shapes = bytearray(), []
    kept, digests, bad = [], [], []
    for place, found in enumerate(looks):
        if isinstance(found, BadImageError):
            bad.append(f"{printable(listing.names[place], 80)} ({printable(found, 80)})")
            continue
        digest, array = found
        kept.append(place)
        digests.append(digest)
        checked.add(listing.names[place], facts[place], digest)
        if to_ram and array is not None and len(pixels) + array.nbytes <= RAM_LIMIT:
            pixels += array.tobytes()
            shapes.append(array.shape[:2])
        elif to_ram:
            to_ram, pixels, shapes = False, bytearray(), []
        if not to_ram and len(kept) % _SAVE_EVERY == 0:
            checked.save()
    if not to_ram:
        checked.save()
    _judge(listing, bad, max_bad)
    if to_ram:
        return VerifiedFolder(kept, digests, RamPixels(pixels, shapes))
    known_facts = [facts[place] for place in kept]
    return VerifiedFolder(kept, digests, FilePixels(listing.contents, kept, known_facts, size))


def _judge(listing: Listing, bad: list[str], max_bad: int) -> None:
    """Name the bad files: in an error where they are too many, else in the log."""
    if not bad:
        return
    names = ", ".join(bad[:_NAMED]) + (f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else "")
    message = f"{printable(listing.folder)}: {len(bad)} of {len(listing.names)} images cannot be read: {names}"
    if len(bad) == len(listing.names):
        raise UserError(message)
    if len(bad) > max_bad:
        raise UserError(f"{message}", remedy=f"mend or remove them, or leave them out with `max_bad_images` {len(bad)}")
    logger.warning("%s; left out (`max_bad_images` %d)", message, max_bad)


def _facts(listing: Listing, place: int) -> tuple[int, int]:
    try:
        return listing.contents.facts(place)
    except BadImageError:  # told again, and counted, when the file is read
        return 0, 0


def _in_order(look: Callable[[int], Found], count: int, threads: int) -> Iterator[Found]:
    """look(0), look(1), ..., a block at a time by several threads."""
    if threads == 1:
        yield from map(look, range(count))
        return
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, _BLOCK):
            yield from pool.map(look, range(start, min(count, start + _BLOCK)))


def _cpus() -> int:
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class CheckedFiles:
    """The content digest of each whole file of one folder, valid while its name, size and time of change stay."""

    def __init__(self, folder: Path) -> None:
        facts = f"{VERSION}/{PIL.__version__}/{folder.resolve()}"
        self.path = cache_folder() / f"images-{hashlib.sha256(facts.encode(errors='surrogateescape')).hexdigest()[:32]}"
        self.records: dict[bytes, bytes] = {}

    def load(self) -> None:
        """Read what earlier runs found; an unreadable file counts as none."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return
        if len(content) % (2 * _DIGEST) == 0:
            starts = range(0, len(content), 2 * _DIGEST)
            self.records = {content[i : i + _DIGEST]: content[i + _DIGEST : i + 2 * _DIGEST] for i in starts}

    def get(self, name: str, facts: tuple[int, int]) -> bytes | None:
        return self.records.get(_key(name, facts))

    def add(self, name: str, facts: tuple[int, int], digest: bytes) -> None:
        self.records[_key(name, facts)] = digest

    def save(self) -> None:
        """Write all; a cache folder that cannot be written is only logged."""
        try:
            atomic_write(self.path, b"".join(key + digest for key, digest in self.records.items()))
        except OSError as error:
            logger.info("checked images are not remembered: %s", error)


def content_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_DIGEST]


def _key(name: str, facts: tuple[int, int]) -> bytes:
    return hashlib.sha256(f"{facts[0]}/{facts[1]}/{name}".encode(errors="surrogateescape")).digest()[:_DIGEST]
