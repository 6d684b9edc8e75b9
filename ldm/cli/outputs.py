"""What a PNG of ours says about itself, and checks that commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from PIL import Image

from autoencoders import Tiling
from ldm.cli.editing import EditRecord
from ldm.data.decode import check_bytes
from ldm.runtime.errors import UserError
from ldm.runtime.files import open_regular
from ldm.runtime.schema import convert, parse_json
from ldm.runtime.settings import from_mapping
from ldm.sampling.config import Request, SamplingConfig

if TYPE_CHECKING:  # wrong flags are refused before torch is imported
    from autoencoders import Autoencoder

_METADATA_LIMIT = 100_000  # characters of PNG text


class _ImageMetadata(TypedDict):
    """The text in a PNG of ours."""

    request: dict[str, Any]
    sampling: dict[str, Any]
    seed: int
    index: int
    edit: NotRequired[dict[str, Any]]


def read_settings_of(path: str) -> tuple[Request, SamplingConfig, dict[str, int], EditRecord | None]:
    """The request, sampling settings, seed and index of a PNG of ours, and the record of its source image if any.

    `UserError` if it has none. Nothing else in it is used: not the name of the model.
    """
    try:
        stream = open_regular(path)
    except FileNotFoundError:
        raise UserError("no such file", setting="recreate", value=path) from None
    try:
        with stream, Image.open(stream, formats=("PNG",)) as image:
            check_bytes(image)
            image.load()  # text may stand at the end of the file
            text = str(image.info.get("ldm", ""))
        metadata = convert(parse_json(text[:_METADATA_LIMIT]), _ImageMetadata)
        request = from_mapping(Request, metadata["request"])
        sampling = from_mapping(SamplingConfig, metadata["sampling"])
        edit = from_mapping(EditRecord, metadata["edit"]) if "edit" in metadata else None
        return request, sampling, {"seed": metadata["seed"], "index": metadata["index"]}, edit
    except (OSError, KeyError, TypeError, ValueError, RecursionError, Image.DecompressionBombError):
        raise UserError(f"--recreate {path}: not an image made by `ldm sample` (no settings in it)") from None


def check_tiling(tiling: Tiling, autoencoder: Autoencoder) -> None:
    """`UserError` for tiles that do not fit the autoencoder, before any work."""
    try:
        tiling.check(autoencoder.factor, autoencoder.config.coder)
    except ValueError as error:
        raise UserError(str(error)) from None
