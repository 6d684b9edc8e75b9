"""Image files to RGB pixels of one size: orientation, alpha, palette, grey, 16 bits, CMYK.

Colour profiles are not applied. Transparent images are put on white; of an animation the first frame is used.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from ldm.data.formats import JXL, OPTIONAL_ENDINGS, jxl_size, optional_format

PLAIN_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
ENDINGS = (*PLAIN_ENDINGS, *OPTIONAL_ENDINGS)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no other decoder is called, but the optional ones
MAX_PIXELS = 89_478_485  # Pillow's threshold of a decompression bomb: 256 MiB of RGB
MAX_BYTES = 512 * 2**20  # of a file
DECODE_BYTES = 464 * 2**20  # of all images that are decoded at one time, so that the process stays below 1 GiB
VERSION = 1  # raise it when the pixels of a file change

_BAND = 2**20  # pixels of an image with alpha or the like that are converted at a time
_SUSPICIOUS_BITS = 14  # a file of 16 bits a channel that uses no more of them was probably not scaled
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> the transpose that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# Bytes a pixel that a decoder holds at most, measured: its own buffers and Pillow's 4.
_DECODER_BYTES = {"WEBP": 16, "AVIF": 12, "HEIF": 16, "JXL": 16}


class BadImageError(ValueError):
    """A file that is not a whole, decodable image; the message says why, without the file's name."""


class MemoryBudget:
    """Bytes that threads share: who needs more than is left waits for the others; one alone always passes."""

    def __init__(self, limit: int) -> None:
        self.limit, self._used = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Hold `size` bytes."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + size <= self.limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


_decoding = MemoryBudget(DECODE_BYTES)
Image.core.set_block_size(64 * 2**20)  # above the largest size that glibc keeps for the thread when it is freed


def decode_rgb(content: bytes, background: str = "white") -> Image.Image:
    """The upright RGB image in a file's content; its size is checked before decoding. BadImageError if it is broken.

    `info["bits"]` of the result is there for a file of 16 bits a channel that uses only so many of them.
    """
    try:
        image = _opened(content)
        with _decoding.reserved(check_bytes(image)):
            sixteen = _is_sixteen_bit(image)
            image.load()
            orientation, bits = _orientation(image), _used_bits(image) if sixteen else 16
            if orientation in _UPRIGHT:  # takes a second copy; known only now, for it may stand at the end of the file
                _check_size(*image.size, 8, f"rotated {image.format}")
            image = _flattened(image, background)
            image = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
        image.info = {"bits": bits} if 0 < bits <= _SUSPICIOUS_BITS else {}
        return image
    except BadImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(f"more than {MAX_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        raise BadImageError("not an image" if content else "empty file") from None
    except Exception as error:  # what Pillow's decoders raise on hostile bytes has no common type
        raise BadImageError(str(error) or type(error).__name__) from None


def decoding_bytes(content: bytes) -> int:
    """What `decode_rgb` takes at most, by the header; 0 for what it refuses."""
    try:
        return check_bytes(_opened(content))
    except Exception:  # decoding raises the reason
        return 0


def upright_size(content: bytes) -> tuple[int, int]:
    """Height and width after `decode_rgb`, from the head of the file alone. BadImageError if it is not an image."""
    try:
        image = _opened(content)
        width, height = image.size
        with _decoding.reserved(check_bytes(image)):  # a PNG is decoded to its end, where its orientation may stand
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except Exception:  # decoding raises the reason
        decoded = decode_rgb(content)
        return decoded.height, decoded.width


def unscaled_bits(image: Image.Image) -> int:
    """Of an image of `decode_rgb`: how many of the 16 bits of its file it uses, if these are suspiciously few; else 0.

    Cameras and scanners of 10, 12 or 14 bits are often stored so; the image is dark, for its white is not 65535.
    """
    return int(image.info.get("bits", 0))


def _opened(content: bytes) -> Image.Image:
    """The image with its header read and nothing decoded."""
    kind = optional_format(content)
    if kind is None:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    if not kind.is_available():
        problem = f"{kind.endings[0][1:].upper()}: install its decoder by pip install 'guided-latents[{kind.extra}]'"
        raise BadImageError(problem)
    if kind is JXL:  # its plug-in decodes here
        _check_size(*jxl_size(content), _DECODER_BYTES["JXL"], "JXL")
    return Image.open(io.BytesIO(content), formats=(kind.name,))


def check_bytes(image: Image.Image) -> int:
    """The bytes that decoding takes, by the header; BadImageError where they are too many."""
    channels = len(image.getbands())
    stored = {"I": 4, "F": 4}.get(image.mode, 2 if image.mode.startswith("I;16") else 1)
    stored = 4 if channels > 1 else stored  # two, three or four channels are held in 4 bytes
    decoder = _DECODER_BYTES.get(image.format or "", stored)
    if image.info.get("progressive"):  # of a JPEG: all coefficients, 2 bytes each
        decoder += 2 * channels
    plain = image.mode == "RGB" and "transparency" not in image.info
    cost = max(decoder, stored + (0 if plain else 4))
    _check_size(*image.size, cost, f"{image.mode} {image.format}")
    rotates = "exif" in image.info or image.format == "TIFF"  # perhaps
    return max(cost, 8 if rotates else 0) * image.width * image.height


def _check_size(width: int, height: int, bytes_each: int, kind: str) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels, expected 1 to {MAX_PIXELS}")
    if (size := width * height * bytes_each) > DECODE_BYTES:
        need = f"{size / 2**20:.0f} MiB to decode, more than {DECODE_BYTES / 2**20:.0f}"
        raise BadImageError(f"{width} x {height} pixels of {kind} take {need}; make it smaller, or RGB in PNG")


def _is_sixteen_bit(image: Image.Image) -> bool:
    """Whether a file has 16 bits a channel; Pillow reads the upper 8 of those of colour images."""
    raw_modes = [str(tile[3]) for tile in getattr(image, "tile", ())]
    return image.mode.startswith("I") or any(";16" in mode for mode in raw_modes)


def _used_bits(image: Image.Image) -> int:
    """The number of bits of the largest value."""
    extrema = image.getextrema()
    if image.mode.startswith("I"):
        return int(extrema[1]).bit_length()  # type: ignore[arg-type]
    channels = [high for _, high in (extrema if isinstance(extrema[0], tuple) else (extrema,))]  # type: ignore[misc]
    if len(image.getbands()) in (2, 4):
        channels = channels[:-1]  # alpha
    largest = int(max(channels))  # type: ignore[type-var]
    return largest.bit_length() + 8 if largest else 0


def _flattened(image: Image.Image, background: str) -> Image.Image:
    """Any mode to RGB, alpha over the background; large images a band at a time, for that takes several copies."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not sixteen:
        raise BadImageError(f'pixels of mode "{image.mode}" have no known range')
    convert = _from_sixteen_bits if sixteen else _from_eight_bits
    width, height = image.size
    if width * height <= _BAND:
        return convert(image, background)
    flattened, rows = Image.new("RGB", image.size), max(1, _BAND // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(height, top + rows)))
        flattened.paste(convert(band, background), (0, top))
    return flattened


def _from_sixteen_bits(image: Image.Image, background: str) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)  # 0..65535; Pillow would clip them at 255
    grey = ((values + 128) // 257).astype(np.uint8)  # nearest of 0..255
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255 if background == "white" else 0
    return Image.fromarray(grey).convert("RGB")


def _from_eight_bits(image: Image.Image, background: str) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """By EXIF: 1, upright, to 8; from 5 on height and width are swapped. Unreadable EXIF data are ignored."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # malformed EXIF data; the pixels may be whole
        orientation = 1
    return orientation if orientation in _UPRIGHT else 1


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Antialiased bicubic resize of the shorter side to `size`: uint8 (h, w, 3). BadImageError if it would be huge."""
    short = min(image.size)
    width, height = (max(size, round(side * size / short)) for side in image.size)
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{image.width} x {image.height} pixels: too long and thin for size {size}")
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def crop_square(pixels: np.ndarray, position: tuple[float, float] | None = None) -> np.ndarray:
    """The largest square of (h, w, 3), in the centre or at `position` (down, right) in [0, 1)."""
    height, width = pixels.shape[:2]
    size = min(height, width)
    down, right = position or (0.0, 0.0)
    top, left = int(down * (height - size + 1)), int(right * (width - size + 1))
    if position is None:
        top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]
