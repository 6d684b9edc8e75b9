"""A text file for each image: x.txt or x.caption beside x.png, or at the same path in another folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ldm.data.config import DataConfig
from ldm.data.layouts.tree import Tree, scan
from ldm.data.listing import MAX_LINE
from ldm.runtime.errors import UserError
from ldm.runtime.text import counted, printable

CAPTION_ENDINGS = (".txt", ".caption")


@dataclass(frozen=True)
class CaptionFiles:
    """The caption file of each image that has one, by paths relative to `folder`."""

    folder: Path
    files: dict[str, str]  # image -> its file
    line: str  # how they were found

    def read(self, config: DataConfig) -> dict[str, tuple[str, ...]]:
        """The captions of each image; an empty file is none."""
        return {
            name: texts
            for name, file in self.files.items()
            if (texts := split_captions(_text(self.folder / file), config, printable(self.folder / file)))
        }


def beside(tree: Tree, images: Sequence[str]) -> CaptionFiles | None:
    """The .txt or .caption files that have the names of images; `UserError` for an image that has both."""
    files: dict[str, str] = {}
    for name in images:
        if own := _of(name, tree.known, tree.folder):
            files[name] = own
    if not files:
        return None
    endings = sorted({PurePosixPath(file).suffix for file in files.values()})
    line = f"captions: {counted(len(files), 'file')} ({', '.join(endings)}) beside the images"
    return CaptionFiles(tree.folder, files, line)


def from_folder(tree: Tree, images: Sequence[str], given: str) -> CaptionFiles:
    """Those of a folder, at the path of each image below the data folder or below one of its sub-folders."""
    folder = next((path for path in (Path(given).expanduser(), tree.folder / given) if path.is_dir()), None)
    if folder is None:
        remedy = "metadata, files, or a folder with a .txt or .caption file for each image"
        raise UserError("no such folder", remedy=remedy, setting="captions_from", value=printable(given))
    known = scan(folder).known
    depth = max((name.count("/") for name in images), default=0)
    for cut in range(depth + 1):  # images/001.cat/x.jpg has text/images/001.cat/x.txt, 001.cat/x.txt or x.txt
        files = {name: own for name in images if (own := _of(_without(name, cut), known, folder))}
        if files:
            break
    else:
        problem = f"holds no .txt or .caption file of the name of an image in {printable(tree.folder)}"
        raise UserError(problem, setting="captions_from", value=printable(given))
    twice = len(files) - len({*files.values()})
    if twice:
        problem = f"{twice} of its files fit several images, such as {printable(next(iter(files.values())))}"
        raise UserError(problem, remedy="give it the sub-folders", setting="captions_from", value=printable(given))
    line = f"captions: {counted(len(files), 'file')} of {printable(given)} (`captions_from`)"
    return CaptionFiles(folder, files, line)


def split_captions(text: str, config: DataConfig, where: str) -> tuple[str, ...]:
    """The captions in a file; `UserError` for several lines that may be one caption or several."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or config.caption_lines == "each":
        return tuple(dict.fromkeys(lines))
    if config.caption_lines == "one":
        return (" ".join(lines),)
    problem = f"{where}: {len(lines)} lines, which may be one caption or several"
    raise UserError(problem, remedy="give `caption_lines` one or each")


def _of(name: str, known: frozenset[str], folder: Path) -> str:
    stem = name[: -len(PurePosixPath(name).suffix)]
    own = [stem + ending for ending in CAPTION_ENDINGS if stem + ending in known]
    if len(own) > 1 and _text(folder / own[0]).strip() != _text(folder / own[1]).strip():
        problem = f"{printable(folder / name)}: has two captions, {' and '.join(CAPTION_ENDINGS)}"
        raise UserError(problem, remedy="remove one, or name a folder with one kind by `captions_from`")
    return own[0] if own else ""


def _without(name: str, folders: int) -> str:
    parts = name.split("/")
    return "/".join(parts[min(folders, len(parts) - 1) :])


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_LINE:
        raise UserError(f"{printable(path)}: longer than {MAX_LINE} bytes, not a caption")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)}: not UTF-8 text ({error.reason})") from None
