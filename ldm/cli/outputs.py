"""Folders of images that a command writes: checked first, written whole, each image with its settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autoencoders import Autoencoder, Tiling
from ldm.cli.editing import EditRecord
from ldm.cli.parsing import require
from ldm.data.decode import check_bytes
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_folder, atomic_write_json, open_regular, read_json
from ldm.runtime.images import PngWriter, enlarged, grid, save_png, to_pil
from ldm.runtime.settings import from_mapping
from ldm.sampling.config import Request, SamplingConfig, caveats

SETTINGS = "settings.json"
_GRID_LIMIT = 100  # images on a grid
_METADATA_LIMIT = 100_000  # characters of PNG text


def check_output(path: str, overwrite: bool) -> Path:
    """The output folder, or a `UserError` when it holds anything but earlier output that may be overwritten."""
    require(path, "--output-dir", "the folder to write to")
    folder = Path(path)
    if folder.resolve() == Path.cwd():
        raise UserError(f"--output-dir {path}: is the current folder, which would be replaced; name one in it")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {path}: is a file; give a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / SETTINGS).is_file() or read_json(folder / SETTINGS).get("kind") != "samples":
            raise UserError(f"--output-dir {path}: holds something else; give a new or empty folder")
        if not overwrite:
            raise UserError(f"--output-dir {path}: holds earlier samples; give a new folder, or --overwrite")
    return folder


def write_samples(
    folder: Path,
    batches: Iterable[Tensor],
    requests: Sequence[Request],
    sampling: SamplingConfig,
    metadata: dict[str, Any],
    columns: int | None = None,
    *,
    edit: EditRecord | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `000000.png` ..., grid.png and settings.json; returns the grid's path.

    `metadata` holds seed, first_index, model and whatever else an image needs to be made again; it goes into each PNG,
    with the image's own index in place of the first, so that an image made again is the same file. `edit` is about
    the image that they were made from; the images `beside`, (3, H, W), are written under their names.
    """
    shared = {"kind": "samples", **metadata, "sampling": dataclasses.asdict(sampling), "caveats": caveats(sampling)}
    if edit is not None:
        shared["edit"] = dataclasses.asdict(edit)
    common = {name: value for name, value in shared.items() if name != "first_index"}
    with atomic_folder(folder) as target:
        on_grid: list[Tensor] = []
        number = 0
        with PngWriter() as writer:
            for images in batches:
                for image in images.cpu():
                    on_path = requests[number].toward is not None  # whose points share the number of their noise
                    own = {
                        **common,
                        "index": metadata["first_index"] + (0 if on_path else number),
                        "request": dataclasses.asdict(requests[number]),
                    }
                    writer.save(image, target / f"{number:06d}.png", {"ldm": json.dumps(own)})
                    if len(on_grid) < _GRID_LIMIT:
                        on_grid.append(image)
                    number += 1
        save_png(enlarged(grid(torch.stack(on_grid), columns)), target / "grid.png", {"ldm": json.dumps(shared)})
        for name, image in (beside or {}).items():
            save_png(to_pil(image.cpu()), target / f"{name}.png")
        atomic_write_json(
            target / SETTINGS, {**shared, "requests": [dataclasses.asdict(request) for request in requests]}
        )
    return folder / "grid.png"


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
        metadata = json.loads(text[:_METADATA_LIMIT])
        request = from_mapping(Request, metadata["request"])
        sampling = from_mapping(SamplingConfig, metadata["sampling"])
        edit = from_mapping(EditRecord, metadata["edit"]) if "edit" in metadata else None
        return request, sampling, {name: int(metadata[name]) for name in ("seed", "index")}, edit
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"--recreate {path}: not an image made by `ldm sample` (no settings in it)") from None


def check_tiling(tiling: Tiling, autoencoder: Autoencoder) -> None:
    """`UserError` for tiles that do not fit the autoencoder, before any work."""
    try:
        tiling.check(autoencoder.factor, autoencoder.config.coder)
    except ValueError as error:
        raise UserError(str(error)) from None
