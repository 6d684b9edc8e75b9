"""dataset.json of StyleGAN and EDM: `{"labels": [["00000/img00000000.png", 6], ...]}`, or null where there are none."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from ldm.data.layouts.annotations import Annotations
from ldm.data.layouts.tree import Tree, inside
from ldm.data.listing import check_label
from ldm.data.report import PassedOver
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

NAME = "dataset.json"


def is_stylegan(content: Any) -> bool:
    """Whether a JSON file has a list of labels, or states that there is none."""
    return isinstance(content, dict) and "labels" in content and isinstance(content["labels"], list | type(None))


def read_stylegan(tree: Tree, file: str, content: Any) -> Annotations:
    """The labels of a list; vectors are not classes unless all are one-hot. `UserError` names the entry."""
    where = printable(tree.folder / file)
    parent = file[: -len(PurePosixPath(file).name)]
    listed = Annotations(file, (parent,))
    if not is_stylegan(content):
        raise UserError(f'{where}: expected {{"labels": [["name.png", 0], ...]}}')
    if content["labels"] is None:
        listed.says_unlabelled = True
        listed.names = {name: 0 for name in tree.images if name.startswith(parent)}
        listed.how = "no labels (null)"
        return listed
    vectors = 0
    for number, entry in enumerate(content["labels"]):
        at = f"{where}: entry {number}"
        if not isinstance(entry, list) or len(entry) != 2:
            raise UserError(f'{at}: expected ["name.png", label], got {printable(repr(entry), 60)}')
        name = inside(tree, parent, entry[0], at)
        if name in listed.names:
            raise UserError(f'{at}: "{printable(name)}" is entry {listed.names[name]} already')
        listed.names[name] = number
        label = _class_of(entry[1])
        vectors += label is None
        if label is not None:
            listed.labels[name] = check_label(label, at)
    if not listed.names:
        raise UserError(f"{where}: lists no image")
    listed.set_parent(parent)
    if vectors:
        reason = "a vector, where a class number is expected"
        listed.passed_over.append(PassedOver("label", vectors, reason, file, condition=True))
        listed.labels = {}
    else:
        listed.rows, listed.how = len(listed.names), "classes of StyleGAN and EDM"
    return listed


def _class_of(label: Any) -> Any:
    """A class number, also of a one-hot vector; None for another vector."""
    if not isinstance(label, list):
        return label
    ones = [index for index, value in enumerate(label) if value == 1]
    return ones[0] if len(ones) == 1 and all(value in (0, 1) for value in label) else None
