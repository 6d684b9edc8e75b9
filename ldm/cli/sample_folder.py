"""The folder of `ldm sample`: images 000000.png, ..., grid.png and settings.json, which is written last.

Until then `unfinished.json` says what the folder will hold. So a command that was stopped or killed goes on with the
images that are missing, one for more images adds them, and one of other settings is refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from ldm.cli.editing import EditRecord
from ldm.cli.parsing import require
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, read_json
from ldm.runtime.locks import is_begun
from ldm.sampling.config import Request, SamplingConfig, caveats
from ldm.training.run_folder import flat

if TYPE_CHECKING:  # wrong flags are refused before torch is imported
    from torch import Tensor

SETTINGS, UNFINISHED, GRID = "settings.json", "unfinished.json", "grid.png"
_IMAGE = re.compile(r"(\d{6,})\.png")
_GRID_LIMIT = 100  # images on a grid
_MAY_DIFFER = ("requests", "model", "classifier", "weak", "caveats")  # compared one by one, or by fingerprints
_MAX_LISTED = 4  # settings in a refusal


def check_output(path: str) -> Path:
    """The output folder, or a `UserError` when it holds anything but samples."""
    require(path, "--output-dir", "the folder to write to")
    folder = Path(path)
    if folder.resolve() == Path.cwd():
        raise UserError(f"--output-dir {path}: is the current folder; name one in it")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {path}: is a file; give a new or empty folder")
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if not all(is_begun(name, UNFINISHED) for name in names) and read_record(folder) is None:
        raise UserError(f"--output-dir {path}: holds something else; give a new or empty folder")
    return folder


def read_record(folder: Path) -> dict[str, Any] | None:
    """What a folder of samples holds, or will hold; None of another folder."""
    file = next((folder / name for name in (UNFINISHED, SETTINGS) if (folder / name).is_file()), None)
    record = read_json(file) if file is not None else None
    return record if isinstance(record, dict) and record.get("kind") == "samples" else None


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds samples of a command that was stopped."""
    return (folder / UNFINISHED).is_file()


class SampleFolder:
    """Samples and where they are written, by one process that holds the folder's lock."""

    def __init__(
        self,
        folder: Path,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        metadata: Mapping[str, Any],
        fingerprint: Mapping[str, Any],
        *,
        edit: EditRecord | None = None,
        beside: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`metadata` holds seed, first_index, model and whatever else an image needs to be made again; it goes into
        each PNG, with the image's own index in place of the first, so that an image made again is the same file.

        `fingerprint` tells models and files of the same names apart. `edit` is about the image that the samples were
        made from; the images `beside`, (3, H, W), are written under their names.
        """
        self.folder, self.requests, self.beside = folder, requests, dict(beside or {})
        shared = {"kind": "samples", **metadata, "sampling": dataclasses.asdict(sampling)}
        shared |= {"caveats": caveats(sampling)} | ({} if edit is None else {"edit": dataclasses.asdict(edit)})
        self._shared, self._first = shared, metadata["first_index"]
        listed = [dataclasses.asdict(request) for request in requests]
        content = {**shared, "fingerprint": dict(fingerprint), "requests": listed}
        self._content: dict[str, Any] = json.loads(json.dumps(content))
        self._replaces = False

    def missing_batches(
        self, batch_size: int, replace: Literal["nothing", "others", "complete"] = "nothing"
    ) -> list[int]:
        """The numbers of the batches of which an image is not there; `UserError` for a folder of other samples.

        `replace` others, or also the same ones if they are complete, in their place: when the first new image is
        written.
        """
        record = read_record(self.folder)
        if record is not None:
            problem = self._difference(record)
            if problem and replace == "nothing":
                remedy = "give a new folder, or `overwrite`"
                raise UserError(problem, remedy=remedy, setting="output_dir", value=self.folder)
            complete = replace == "complete" and not (self.folder / UNFINISHED).is_file()
            self._replaces = bool(problem) or complete
        present = set() if self._replaces else self.present()
        starts = range(0, len(self.requests), batch_size)
        ranges = [range(start, min(start + batch_size, len(self.requests))) for start in starts]
        return [number for number, part in enumerate(ranges) if not present.issuperset(part)]

    def present(self) -> set[int]:
        """The numbers of the images that are there."""
        return {int(match[1]) for path in self.folder.iterdir() if (match := _IMAGE.fullmatch(path.name))}

    def images(self, most: int | None = None) -> Tensor:
        """The images, or the first of them, as they are in their files: (N, 3, H, W) in [-1, 1]."""
        import torch

        from ldm.runtime.images import from_pil

        numbers = range(len(self.requests))[:most]
        return torch.stack([from_pil(Image.open(self.folder / f"{number:06d}.png")) for number in numbers])

    def write(self, batches: Iterable[Tensor], numbers: Sequence[int], batch_size: int) -> None:
        """Write the images (b, 3, H, W) of the batches of these numbers; those that are there stay as they are."""
        from ldm.runtime.images import PngWriter

        with PngWriter() as writer:
            for images, number in zip(batches, numbers, strict=True):
                if number == numbers[0]:
                    self._begin()
                for position, image in enumerate(images.cpu(), number * batch_size):
                    path = self.folder / f"{position:06d}.png"
                    if not path.exists():
                        writer.save(image, path, {"ldm": self._text(position)})

    def finish(self) -> Path:
        """Write the grid, the images beside and settings.json; returns the grid's path."""
        from ldm.runtime.images import enlarged, grid, save_png, to_pil

        path = self.folder / GRID
        if not (self.folder / UNFINISHED).is_file() and path.is_file():
            return path
        save_png(enlarged(grid(self.images(_GRID_LIMIT))), path, {"ldm": json.dumps(self._shared)})
        for name, image in self.beside.items():
            save_png(to_pil(image.cpu()), self.folder / f"{name}.png")
        atomic_write_json(self.folder / SETTINGS, self._content)
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        return path

    def _begin(self) -> None:
        """Say in the folder what it will hold, having removed what is replaced."""
        if self._replaces:
            for name in (*(f"{number:06d}.png" for number in self.present()), GRID, "reconstruction.png"):
                (self.folder / name).unlink(missing_ok=True)
        atomic_write_json(self.folder / UNFINISHED, self._content)
        if self._replaces:
            (self.folder / SETTINGS).unlink(missing_ok=True)

    def _text(self, number: int) -> str:
        """The settings of one image, for its file."""
        on_path = self.requests[number].toward is not None  # whose points share the number of their noise
        own = {name: value for name, value in self._shared.items() if name != "first_index"}
        index = self._first + (0 if on_path else number)
        return json.dumps({**own, "index": index, "request": dataclasses.asdict(self.requests[number])})

    def _difference(self, record: Mapping[str, Any]) -> str:
        """What tells the samples of a folder from these, as a problem; "" for the same ones, of which more may come."""
        texts = _differences(_compared(record), _compared(self._content))
        for number, (old, new) in enumerate(zip(record.get("requests", []), self._content["requests"], strict=False)):
            if not texts and old != new:
                texts = [f"image {number}: {text}" for text in _differences(old, new)]
        if texts:
            more = f"; and {len(texts) - _MAX_LISTED} more" if len(texts) > _MAX_LISTED else ""
            return f"holds earlier samples of other settings ({'; '.join(texts[:_MAX_LISTED])}{more})"
        if (there := max(self.present(), default=-1) + 1) > len(self.requests):
            return f"holds {there} earlier samples, more than `num_images` {len(self.requests)}"
        return ""


def _compared(content: Mapping[str, Any]) -> dict[str, Any]:
    return flat({name: value for name, value in content.items() if name not in _MAY_DIFFER})


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return [f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in names]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
