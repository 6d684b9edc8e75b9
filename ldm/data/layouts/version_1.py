"""The rules of layout version 1, by which runs were made before captions and classes were read from more layouts.

A list only at the top of the folder, with the columns file_name, text and label; else classes, if there are two or more
sub-folders and no image outside them; no caption files. A run that was made by these rules goes on with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ldm.data.decode import PLAIN_ENDINGS
from ldm.data.layouts.left_over import left_over
from ldm.data.layouts.tables import table_columns, table_rows
from ldm.data.layouts.tree import Tree, inside, scan
from ldm.data.listing import Listing, check_label, check_texts, number_classes
from ldm.data.pixels import FolderContents
from ldm.data.report import PassedOver, Reading
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

_METADATA = ("metadata.jsonl", "metadata.csv")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}
_COLUMNS = ("file_name", "text", "label")


def list_by_version_1(folder: Path) -> Listing:
    """The images of a folder as version 1 read them."""
    metadata = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise UserError(f"{printable(folder)}: holds both {_METADATA[0]} and {_METADATA[1]}", remedy="keep one")
    tree = scan(folder)
    return _from_metadata(tree, metadata[0]) if metadata else _from_tree(tree)


def _reading(tree: Tree, names: Sequence[str], passed: Sequence[PassedOver] = (), lists: Sequence[str] = ()) -> Reading:
    unlisted = sorted({*tree.images} - {*names})
    left = left_over(tree, {*names, *lists}, {"not listed": unlisted})
    return Reading("by the rules of `layout_version` 1, which pass over more than those of today", (), (*passed, *left))


def _from_tree(tree: Tree) -> Listing:
    folder = tree.folder
    names = tuple(name for name in tree.images if PurePosixPath(name).suffix.lower() in PLAIN_ENDINGS)
    if not names:
        raise UserError(f"{printable(folder)}: holds no image")
    contents = FolderContents(folder, names)
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    if len(classes) < 2 or any("/" not in name for name in names):
        return Listing(folder, names, None, None, (), contents, _reading(tree, names))
    if {name.lower() for name in classes} <= _SPLIT_NAMES:
        problem = f"{printable(folder)}: its sub-folders ({', '.join(classes)}) are splits, not classes"
        raise UserError(problem, remedy="name one by `data`")
    number = {name: label for label, name in enumerate(classes)}
    labels = tuple(number[name.split("/")[0]] for name in names)
    return Listing(folder, names, labels, None, tuple(classes), contents, _reading(tree, names))


def _from_metadata(tree: Tree, path: Path) -> Listing:
    names: dict[str, int] = {}  # name -> line
    captions: list[tuple[str, ...]] = []
    labels: list[int | str] = []
    is_csv = path.suffix == ".csv"
    if is_csv and "file_name" not in table_columns(path):
        raise UserError(f"{printable(path)}: its first line must name a column file_name")
    for line, row in table_rows(path):
        where = f"{printable(path)}, line {line}"
        name = inside(tree, "", row.get("file_name"), where)
        if name in names:
            raise UserError(f'{where}: "{printable(name)}" is on line {names[name]} already')
        names[name] = line
        text = row.get("text") if not is_csv else (row["text"] or "") if "text" in row else None  # "" in CSV
        if text is not None:
            captions.append(check_texts(text, where))
        if row.get("label") is not None:
            labels.append(check_label(row["label"], where))
        for column, values in (("text", captions), ("label", labels)):
            if values and len(values) != len(names):
                problem = f"{where}: some lines up to here have a {column} and some have none"
                raise UserError(problem, remedy="give all or none one")
    if not names:
        raise UserError(f"{printable(path)}: lists no image")
    if is_csv and all(str(label).isascii() and str(label).isdigit() for label in labels):
        labels = [check_label(int(label), str(path)) for label in labels]
    numbers, class_names = number_classes(labels, path)
    texts, files = tuple(captions) if captions else None, tuple(names)
    others = [name for name in table_columns(path) if name not in _COLUMNS]
    passed = [PassedOver(f"column ({', '.join(others)})", len(others), "not of version 1", condition=True)]
    reading = _reading(tree, files, passed if others else [], [path.name])
    return Listing(tree.folder, files, numbers, texts, class_names, FolderContents(tree.folder, files), reading)
