"""Image formats that need a plug-in of Pillow: AVIF, HEIC, JPEG XL.

A file is known by its first bytes, whatever its name. The plug-in is loaded when the first file of its format is read.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from PIL import features

_AVIF, _HEIC = (b"avif", b"avis"), (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_JXL_CODESTREAM, _JXL_CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width : height; ISO/IEC 18181-1, D.3.2


@dataclass(frozen=True)
class OptionalFormat:
    """A format of Pillow that not every installation reads."""

    name: str  # Pillow's
    endings: tuple[str, ...]
    extra: str  # of this package, which installs what it needs

    def is_available(self) -> bool:
        """Whether Pillow reads it, after its plug-in was loaded if there is one."""
        try:
            if self.name == "AVIF":
                return bool(features.check("avif"))
            if self.name == "HEIF":
                importlib.import_module("pillow_heif").register_heif_opener()
            else:
                importlib.import_module("pillow_jxl")
        except (ImportError, ValueError):  # ValueError: an older Pillow does not know the word "avif"
            return False
        return True


AVIF = OptionalFormat("AVIF", (".avif",), "avif")
HEIC = OptionalFormat("HEIF", (".heic", ".heif"), "heic")
JXL = OptionalFormat("JXL", (".jxl",), "jxl")
OPTIONAL_ENDINGS = tuple(ending for kind in (AVIF, HEIC, JXL) for ending in kind.endings)


def optional_format(content: bytes) -> OptionalFormat | None:
    """The optional format of a file's content, None for another."""
    if content[4:8] == b"ftyp":  # ISO base media: the major brand, then the compatible ones
        end = min(int.from_bytes(content[:4], "big"), 256)
        brands = [content[8:12], *(content[start : start + 4] for start in range(16, end, 4))]
        if any(brand in _AVIF for brand in brands):
            return AVIF
        return HEIC if any(brand in _HEIC for brand in brands) else None
    return JXL if content.startswith((_JXL_CODESTREAM, _JXL_CONTAINER)) else None


def jxl_size(content: bytes) -> tuple[int, int]:
    """Width and height of a JPEG XL file from its header, for its plug-in decodes while it opens; (0, 0) if unreadable.

    ISO/IEC 18181-1, D.3: bits from the lowest on; 18181-2 for the boxes of the container.
    """
    start = _codestream(content)
    if content[start : start + 2] != _JXL_CODESTREAM:
        return 0, 0
    bits = int.from_bytes(content[start + 2 : start + 14], "little")

    def read(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = read(1)

    def side() -> int:
        return 8 * (read(5) + 1) if small else read((9, 13, 18, 30)[read(2)]) + 1

    height, ratio = side(), read(3)
    if ratio == 0:
        return side(), height
    across, down = _JXL_RATIOS[ratio - 1]
    return height * across // down, height


def _codestream(content: bytes) -> int:
    """Where the codestream begins."""
    if not content.startswith(_JXL_CONTAINER):
        return 0
    position = 0
    while position + 8 <= len(content):
        size, head = int.from_bytes(content[position : position + 4], "big"), 8
        kind = content[position + 4 : position + 8]
        if size == 1:  # the size follows, in 64 bits
            size, head = int.from_bytes(content[position + 8 : position + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            return position + head + (4 if kind == b"jxlp" else 0)  # a part has its number first
        if size < head:
            break
        position += size
    return len(content)
