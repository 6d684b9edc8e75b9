"""Image files to RGB pixels of one size: orientation, alpha, palette, grey, 16 bits, CMYK.

Colour profiles are not applied. Transparent images are put on white; of an animation the first frame is used.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no other decoder is called
MAX_PIXELS = 89_478_485  # Pillow's threshold of a decompression bomb: 256 MiB of RGB
MAX_BYTES = 512 * 2**20  # of a file
VERSION = 1  # raise it when the pixels of a file change

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> the transpose that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class BadImageError(ValueError):
    """A file that is not a whole, decodable image; the message says why, without the file's name."""


def decode_rgb(content: bytes) -> Image.Image:
    """The upright RGB image in a file's content; its size is checked before decoding. BadImageError if it is broken."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if not 0 < width * height <= MAX_PIXELS:
            raise BadImageError(f"{width} x {height} pixels, expected 1 to {MAX_PIXELS}")
        image.load()
        pixels, orientation = _flattened(image), _orientation(image)
        return pixels.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else pixels
    except BadImageError:
        raise
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        raise BadImageError("not an image" if content else "empty file") from None
    except Exception as error:  # what Pillow's decoders raise on hostile bytes has no common type
        raise BadImageError(str(error) or type(error).__name__) from None


def upright_size(content: bytes) -> tuple[int, int]:
    """Height and width after `decode_rgb`, from the head of the file alone. BadImageError if it is not an image."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)
    except Exception:  # decoding raises the reason
        decoded = decode_rgb(content)
        return decoded.height, decoded.width


def _flattened(image: Image.Image) -> Image.Image:
    """Any mode to RGB, alpha over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)  # 0..65535; Pillow would clip them at 255
        grey = ((values + 128) // 257).astype(np.uint8)  # nearest of 0..255
        if isinstance(image.info.get("transparency"), int):
            grey[values == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadImageError(f'pixels of mode "{image.mode}" have no known range')
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
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
