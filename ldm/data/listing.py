"""The images of a folder with their labels and captions; no image is opened here."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ldm.data.decode import ENDINGS
from ldm.data.pixels import Contents, FolderContents
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

METADATA = ("metadata.jsonl", "metadata.csv")
MAX_LINE = 2**20  # characters of one line of metadata
MAX_CLASSES = 100_000
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class Listing:
    """The images of a folder, by their relative paths (with "/"), in a fixed order."""

    folder: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None  # one for each name
    captions: tuple[tuple[str, ...], ...] | None  # one or more for each name
    class_names: tuple[str, ...]
    contents: Contents


def list_folder(folder: str | Path) -> Listing:
    """From metadata.jsonl or metadata.csv, else from class sub-folders, else unlabelled.

    Sub-folders are classes if there are two or more and no image is outside them; images may be at any depth.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{printable(folder)}: {'not a folder' if folder.exists() else 'no such folder'}")
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise UserError(f"{printable(folder)}: holds both {METADATA[0]} and {METADATA[1]}", remedy="keep one")
    return _from_metadata(folder, metadata[0]) if metadata else _from_tree(folder)


def _from_tree(folder: Path) -> Listing:
    paths = sorted(_files(folder))
    names = tuple(name for name in paths if PurePosixPath(name).suffix.lower() in ENDINGS)
    if not names:
        files = f"{len(paths)} file{'s' if len(paths) > 1 else ''}, none an image" if paths else "no file"
        remedy = f"looked for {', '.join(ENDINGS)}, in sub-folders as well"
        raise UserError(f"{printable(folder)}: holds {files}", remedy=remedy)
    contents = FolderContents(folder, names)
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    if len(classes) < 2 or any("/" not in name for name in names):
        return Listing(folder, names, None, None, (), contents)
    if {name.lower() for name in classes} <= _SPLIT_NAMES:
        problem = f"{printable(folder)}: its sub-folders ({', '.join(classes)}) are splits, not classes"
        raise UserError(problem, remedy="name one by `data`")
    number = {name: label for label, name in enumerate(classes)}
    labels = tuple(number[name.split("/")[0]] for name in names)
    return Listing(folder, names, labels, None, tuple(classes), contents)


def _files(folder: Path) -> Iterator[str]:
    """Every file below `folder` that is not hidden. Links are followed; a folder is visited once, so loops end."""
    visited: set[tuple[int, int]] = set()
    waiting = [(str(folder), "")]
    while waiting:
        path, prefix = waiting.pop()
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    waiting.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file():
                    yield prefix + entry.name


def _from_metadata(folder: Path, path: Path) -> Listing:
    names: dict[str, int] = {}  # name -> line
    captions: list[tuple[str, ...]] = []
    labels: list[int | str] = []
    root = folder.resolve()
    parents: dict[str, str] = {}
    for line, row in _rows(path):
        where = f"{printable(path)}, line {line}"
        name = _inside(root, row.get("file_name"), where, parents)
        if name in names:
            raise UserError(f'{where}: "{printable(name)}" is on line {names[name]} already')
        names[name] = line
        if row.get("text") is not None:
            captions.append(check_texts(row["text"], where))
        if row.get("label") is not None:
            labels.append(check_label(row["label"], where))
        for column, values in (("text", captions), ("label", labels)):
            if values and len(values) != len(names):
                problem = f"{where}: some lines up to here have a {column} and some have none"
                raise UserError(problem, remedy="give all or none one")
    if not names:
        raise UserError(f"{printable(path)}: lists no image")
    if path.suffix == ".csv" and all(str(label).isascii() and str(label).isdigit() for label in labels):
        labels = [check_label(int(label), str(path)) for label in labels]
    numbers, class_names = number_classes(labels, path)
    texts, files = tuple(captions) if captions else None, tuple(names)
    return Listing(folder, files, numbers, texts, class_names, FolderContents(folder, files))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a JSONL or CSV file."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            yield from _csv_rows(stream, path) if path.suffix == ".csv" else _json_rows(stream, path)
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)}: not UTF-8 text ({error.reason})") from None


def _json_rows(stream: Any, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    while text := stream.readline(MAX_LINE):
        line += 1
        if len(text) == MAX_LINE:
            raise UserError(f"{printable(path)}, line {line}: longer than {MAX_LINE} characters")
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{printable(path)}, line {line}: not valid JSON ({printable(error)})") from None
        if not isinstance(row, dict):
            problem = f'expected {{"file_name": ..., "text": ...}}, got {printable(text, 60)}'
            raise UserError(f"{printable(path)}, line {line}: {problem}")
        yield line, row


def _csv_rows(stream: Any, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(stream, strict=True)
    try:
        header = reader.fieldnames or []
        if "file_name" not in header:
            problem = f"its first line must name a column file_name, got {printable(', '.join(header))}"
            raise UserError(f"{printable(path)}: {problem}")
        for row in reader:
            if None in row or any(value is None for value in row.values()):
                raise UserError(f"{printable(path)}, line {reader.line_num}: expected {len(header)} columns")
            yield reader.line_num, {k: None if k == "label" and not v else v for k, v in row.items()}
    except csv.Error as error:
        raise UserError(f"{printable(path)}, line {reader.line_num}: not valid CSV ({printable(error)})") from None


def _inside(root: Path, name: Any, where: str, parents: dict[str, str]) -> str:
    """A file name of the metadata, normalised; `UserError` unless it is an existing file inside the folder.

    `parents` caches the real paths of folders: to resolve the whole path of a million files takes a minute.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        problem = f"file_name must be the path of an image inside the folder, got {printable(repr(name), 60)}"
        raise UserError(f"{where}: {problem}")
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in (*path.parts, *windows.parts):
        remedy = 'give a path relative to it, without ".."'
        raise UserError(f'{where}: "{printable(name)}" leaves the folder', remedy=remedy)
    parent = str(path.parent)
    try:
        if parent not in parents:
            parents[parent] = os.path.realpath(root / parent, strict=True)
        real = os.path.join(parents[parent], path.name)
        if stat.S_ISLNK(os.lstat(real).st_mode):
            real = os.path.realpath(real, strict=True)
    except (OSError, ValueError):
        raise UserError(f'{where}: no file "{printable(name)}" in {printable(root)}') from None
    if not Path(real).is_relative_to(root):
        raise UserError(f'{where}: "{printable(name)}" is a link that leaves the folder')
    if not os.path.isfile(real):
        raise UserError(f'{where}: "{printable(name)}" is not a file')
    return str(path)


def check_texts(text: Any, where: str) -> tuple[str, ...]:
    """One caption or several; `UserError` for anything else."""
    texts = text if isinstance(text, list) else [text]
    if not texts or not all(isinstance(caption, str) for caption in texts):
        raise UserError(f"{where}: text must be a string or a list of strings, got {printable(json.dumps(text), 60)}")
    return tuple(texts)


def check_label(label: Any, where: str) -> int | str:
    """A class by its name or number; `UserError` for anything else."""
    if isinstance(label, str) and label.strip():
        return label.strip()
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < MAX_CLASSES:
        return label
    problem = f"label must be a name or a number from 0 to {MAX_CLASSES - 1}, got {printable(repr(label), 60)}"
    raise UserError(f"{where}: {problem}")


def number_classes(labels: Sequence[int | str], path: Path) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Labels as numbers, and the class names. Names are numbered in sorted order; numbers are their own names."""
    if not labels:
        return None, ()
    if all(isinstance(label, int) for label in labels):
        return tuple(labels), tuple(map(str, range(max(labels) + 1)))  # type: ignore[arg-type,type-var,operator]
    if any(isinstance(label, int) for label in labels):
        raise UserError(f"{printable(path)}: some labels are names and some are numbers", remedy="give one kind")
    names = sorted(set(labels))  # type: ignore[type-var]
    if len(names) > MAX_CLASSES:
        raise UserError(f"{printable(path)}: {len(names)} different labels, more than {MAX_CLASSES}")
    number = {name: index for index, name in enumerate(names)}
    return tuple(number[label] for label in labels), tuple(names)  # type: ignore[arg-type]
