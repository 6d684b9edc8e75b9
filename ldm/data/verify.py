"""Every image of a folder is decoded once before training starts, so that a broken file is reported before step 1.

A folder whose resized pixels fit into `RAM_LIMIT` stays in memory, as uint8. From a larger one every example is decoded
again, and a cache on disk lists the files that passed the check, so that the next check decodes only new and changed
files. A file that changes after the check is an error; nothing replaces it.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL

from ldm.data.decode import (
    DECODE_BYTES,
    VERSION,
    BadImageError,
    MemoryBudget,
    crop_square,
    decode_rgb,
    decoding_bytes,
    fit,
    unscaled_bits,
)
from ldm.data.listing import Listing
from ldm.data.pixels import CropPosition, FilePixels, FileStat, Pixels, RamPixels
from ldm.data.report import Size
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write, cache_folder
from ldm.runtime.progress import progress
from ldm.runtime.text import counted, printable

RAM_LIMIT = 2**30  # bytes of decoded pixels
_NAMED = 5  # bad files named in a message
_SMALL_FILE = 16 * 2**10  # bytes; below it threads cost more than they save
_BLOCK = 1024  # files given to the threads at a time
_DIGEST = 16  # bytes; a record is the digest of (name, size, time of change), that of the content, height and width
_SIZE = struct.Struct("<II")
_RECORD = 2 * _DIGEST + _SIZE.size  # bytes
_READ_BYTES = 256 * 2**20  # of the files that all threads hold at one time
_SAVE_EVERY = 20_000  # files, so that an interrupted check is not lost

logger = logging.getLogger("ldm")

Checked = tuple[bytes, Size]  # the digest of a whole file's content; the size of its image
DecodeResult = tuple[Checked, np.ndarray | None] | BadImageError  # pixels, if they stay in memory


class VerifiedFolder:
    """The whole images of a folder: their `indices` in the listing, a digest of each one's content, their pixels, the
    smallest and the largest size; the images that are not whole, each with the reason; a line about dark ones."""

    def __init__(
        self, indices: list[int], checked: list[Checked], pixels: Pixels, bad: Mapping[str, BadImageError], dark: str
    ) -> None:
        self.indices, self.pixels, self.bad, self.dark = indices, pixels, list(_reasons(bad)), dark
        self.digests = [digest for digest, _ in checked]
        sizes = [size for _, size in checked]
        self.sizes: tuple[Size, Size] = min(sizes, key=math.prod), max(sizes, key=math.prod)

    def crop(self, index: int, position: CropPosition) -> np.ndarray:
        """A square of whole image `index`: uint8 (size, size, 3)."""
        return self.pixels.crop(index, position)


_verified: weakref.WeakValueDictionary[tuple[object, ...], VerifiedFolder] = weakref.WeakValueDictionary()


def verify(listing: Listing, size: int, *, crop: str, max_bad: int) -> VerifiedFolder:
    """Decode every file; `UserError` if more than `max_bad` of them are not whole images.

    The splits of a folder share one result, as long as one of them is in use and no file has changed.
    """
    stats = [_stat(listing, index) for index in range(len(listing.names))]
    key = (listing.folder.resolve(), listing.names, tuple(stats), size, crop, max_bad)
    result = _verified.get(key)
    if result is None:
        result = _verified[key] = _verify(listing, stats, size, crop, max_bad)
    return result


def _verify(listing: Listing, stats: list[FileStat], size: int, crop: str, max_bad: int) -> VerifiedFolder:
    checked = CheckedFiles(listing.folder)
    to_ram = len(stats) * size * size * 3 <= RAM_LIMIT  # random crops keep more pixels: counted again below
    if not to_ram:
        checked.load()

    threads = 1 if sum(length for length, _ in stats) < _SMALL_FILE * len(stats) else _cpus()
    reading, decoding, unscaled = MemoryBudget(_READ_BYTES), MemoryBudget(DECODE_BYTES), list[tuple[str, int]]()

    def decode(index: int) -> DecodeResult:
        known = checked.get(listing.names[index], stats[index])
        if known is not None:
            return known, None
        try:
            with reading.reserved(stats[index][0]):
                content = listing.contents.read(index)
                with decoding.reserved(decoding_bytes(content) if threads > 1 else 0):
                    image = decode_rgb(content)
                    array, stored = fit(image, size), (image.height, image.width)
                    bits = unscaled_bits(image)
                    del image  # before another thread takes its memory
            if bits:
                unscaled.append((listing.names[index], bits))
        except BadImageError as error:
            return BadImageError(str(error))  # whose traceback does not hold the content
        array = array if crop == "random" else crop_square(array)
        return (content_digest(content), stored), array if to_ram else None

    results = progress(_in_order(decode, len(stats), threads), "checking images", total=len(stats))
    pixels, shapes = bytearray(), []
    indices: list[int] = []
    whole: list[Checked] = []
    bad: dict[str, BadImageError] = {}
    for index, result in enumerate(results):
        if isinstance(result, BadImageError):
            bad[listing.names[index]] = result
            continue
        own, array = result
        indices.append(index)
        whole.append(own)
        checked.add(listing.names[index], stats[index], own)
        if to_ram and array is not None and len(pixels) + array.nbytes <= RAM_LIMIT:
            pixels += array.tobytes()
            shapes.append(array.shape[:2])
        elif to_ram:
            to_ram, pixels, shapes = False, bytearray(), []
        if not to_ram and len(indices) % _SAVE_EVERY == 0:
            checked.save()
    if not to_ram:
        checked.save()
    report_bad(listing.folder, len(listing.names), bad, max_bad)
    dark = ""
    if unscaled:
        name, bits = min(unscaled)
        dark = f"{counted(len(unscaled), 'image')} of 16 bits a channel, such as {printable(name, 80)} ({bits} bits), "
        dark += "do not use them all, so they are dark: scale them to 65535"
    if to_ram:
        return VerifiedFolder(indices, whole, RamPixels(pixels, shapes), bad, dark)
    own_stats = [stats[index] for index in indices]
    return VerifiedFolder(indices, whole, FilePixels(listing.contents, indices, own_stats, size), bad, dark)


def report_bad(folder: Path, count: int, bad: Mapping[str, BadImageError], max_bad: int) -> None:
    """Name the bad files of `count` in a folder: in a `UserError` if there are too many, else in the log."""
    if not bad:
        return
    reasons = list(itertools.islice(_reasons(bad), _NAMED))
    names = ", ".join(reasons) + (f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else "")
    message = f"{printable(folder)}: {len(bad)} of {count} images cannot be read: {names}"
    if len(bad) == count:
        raise UserError(message)
    if len(bad) > max_bad:
        raise UserError(message, remedy=f"repair or remove them, or leave them out with `max_bad_images` {len(bad)}")
    limit = max_bad if max_bad < count else len(bad)  # `ldm info` has none: what a training needs
    logger.warning("%s; left out (`max_bad_images` %d)", message, limit)


def _reasons(bad: Mapping[str, BadImageError]) -> Iterator[str]:
    return (f"{printable(name, 80)} ({printable(error, 160)})" for name, error in bad.items())


def _stat(listing: Listing, index: int) -> FileStat:
    try:
        return listing.contents.stat(index)
    except BadImageError:  # raised again, and counted, when the file is read
        return 0, 0


def _in_order(decode: Callable[[int], DecodeResult], count: int, threads: int) -> Iterator[DecodeResult]:
    """decode(0), decode(1), ..., a block at a time by several threads."""
    if threads == 1:
        yield from map(decode, range(count))
        return
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, _BLOCK):
            yield from pool.map(decode, range(start, min(count, start + _BLOCK)))


def _cpus() -> int:
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class CheckedFiles:
    """The content digests and image sizes of a folder's whole files, cached on disk; valid while a file's name, size
    and time of change are the same."""

    def __init__(self, folder: Path) -> None:
        key = f"{VERSION}/{PIL.__version__}/{folder.resolve()}"
        self.path = cache_folder() / f"checked-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}"
        self.records: dict[bytes, Checked] = {}

    def load(self) -> None:
        """Read the records of earlier runs; an unreadable file counts as none."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return
        if len(content) % _RECORD == 0:
            for i in range(0, len(content), _RECORD):
                key, digest = content[i : i + _DIGEST], content[i + _DIGEST : i + 2 * _DIGEST]
                height, width = _SIZE.unpack_from(content, i + 2 * _DIGEST)
                self.records[key] = digest, (height, width)

    def get(self, name: str, stat: FileStat) -> Checked | None:
        return self.records.get(_key(name, stat))

    def add(self, name: str, stat: FileStat, checked: Checked) -> None:
        self.records[_key(name, stat)] = checked

    def save(self) -> None:
        """Write all records; a cache folder that cannot be written is only logged."""
        try:
            atomic_write(
                self.path, b"".join(key + digest + _SIZE.pack(*size) for key, (digest, size) in self.records.items())
            )
        except OSError as error:
            logger.info("the list of checked images cannot be cached: %s", error)


def content_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_DIGEST]


def _key(name: str, stat: FileStat) -> bytes:
    return hashlib.sha256(f"{stat[0]}/{stat[1]}/{name}".encode(errors="surrogateescape")).digest()[:_DIGEST]
