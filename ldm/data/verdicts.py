"""Files that were found to be whole images, remembered between runs in the user's cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import PIL

from ldm.data.decode import VERSION
from ldm.runtime.files import atomic_write

_HALF = 16  # bytes of a digest; a record is the digest of (name, size, time of change), then that of the content

logger = logging.getLogger("ldm")


class Verdicts:
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
        if len(content) % (2 * _HALF) == 0:
            starts = range(0, len(content), 2 * _HALF)
            self.records = {content[i : i + _HALF]: content[i + _HALF : i + 2 * _HALF] for i in starts}

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


def cache_folder() -> Path:
    """`$LDM_CACHE`, else `guided-latents` in the user's cache folder."""
    if own := os.environ.get("LDM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guided-latents"


def content_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_HALF]


def _key(name: str, facts: tuple[int, int]) -> bytes:
    return hashlib.sha256(f"{facts[0]}/{facts[1]}/{name}".encode(errors="surrogateescape")).digest()[:_HALF]
