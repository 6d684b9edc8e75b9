"""Images and masks that a user gives to begin from, or to guide towards."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.data.decode import BadImageError, crop_square, decode_rgb, fit, unscaled_bits
from ldm.data.pixels import read_file, square_image
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable
from samplers.level import short_repr

logger = logging.getLogger("ldm")


@dataclass(frozen=True, eq=False)
class SourceImage:
    """A user's image as a model takes it."""

    pixels: Tensor  # (3, H, W) in [-1, 1]
    size: tuple[int, int]  # width and height before it was cut
    sha256: str  # of the file

    __repr__ = short_repr


def read_image(path: str | Path, size: int, setting: str = "", background: str = "white") -> SourceImage:
    """Decode as data sets are (upright, alpha over the background), resize the shorter side to `size`, crop the centre.

    `UserError` with the `setting` and the file if it is no whole image.
    """
    image, sha256 = _decoded(path, setting, background)
    try:
        return SourceImage(square_image(image, size), image.size, sha256)
    except BadImageError as error:
        raise _refusal(path, str(error), setting) from None


def read_mask(path: str | Path, source: SourceImage) -> tuple[Tensor, str]:
    """A mask for an image, (1, H, W) of 0 and 1 (white: repaint), and the SHA-256 of its file.

    It is cut like the image, so it must have the image's width and height. A pixel is repainted if half of it is
    white or more, so what is transparent is kept; `UserError` if none is.
    """
    image, sha256 = _decoded(path, "mask", "black")
    if image.size != source.size:
        of_mask, of_source = ("x".join(map(str, size)) for size in (image.size, source.size))
        problem = f"it has {of_mask} pixels and `init_image` {of_source}"
        raise UserError(problem, remedy="they must be of one size", setting="mask", value=path)
    white = image.convert("L").point([0] * 128 + [255] * 128).convert("RGB")
    cut = crop_square(fit(white, source.pixels.shape[-1]))[:, :, 0]  # (H, W)
    mask = torch.from_numpy(cut >= 128).float()[None]
    if not mask.any():
        problem = "nothing is white and opaque, so nothing would be repainted"
        raise UserError(problem, setting="mask", value=path)
    return mask, sha256


def _decoded(path: str | Path, setting: str, background: str) -> tuple[Image.Image, str]:
    """The upright RGB image in a file and the SHA-256 of its bytes."""
    file = Path(path).expanduser()
    if not file.exists():
        raise _refusal(path, "no such file", setting)
    try:
        content = read_file(file)
        image = decode_rgb(content, background)
    except BadImageError as error:
        raise _refusal(path, str(error), setting) from None
    if bits := unscaled_bits(image):
        logger.warning("%s: uses %d of its 16 bits, so it is dark; scale it to 65535", printable(path), bits)
    return image, hashlib.sha256(content).hexdigest()


def _refusal(path: str | Path, problem: str, setting: str) -> UserError:
    return UserError(problem, setting=setting, value=path) if setting else UserError(f"{path}: {problem}")
