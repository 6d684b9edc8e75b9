"""Folders of splits: train, with validation, val, valid or test beside it, also as train2017."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

_SPLIT = re.compile(r"(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?|dev|eval)[-_]?(?:\d{4})?", re.IGNORECASE)


@dataclass(frozen=True)
class Splits:
    """The prefixes ("images/train/") of the images that are read: for training, and held out ("": by name)."""

    train: str = ""
    validation: str = ""
    unused: tuple[str, ...] = ()


def kind_of(name: str) -> str:
    """train, validation or test, of the name of a folder; "" for none of them."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return ""
    word = match[1].lower()
    return "train" if word.startswith("train") else "test" if word.startswith("test") else "validation"


def find_splits(names: Sequence[str], folder_classes: str, where: str) -> Splits:
    """The folders of splits among those of images, at the top or below folders that stand alone.

    `UserError` where there are splits but none for training, several of one kind, or other folders beside them.
    """
    prefix = ""
    while True:
        inner = {name[len(prefix) :].split("/")[0] for name in names if "/" in name[len(prefix) :]}
        direct = any("/" not in name[len(prefix) :] for name in names)
        if len(inner) != 1 or direct or kind_of(next(iter(inner))):
            break
        prefix += f"{next(iter(inner))}/"
    kinds: dict[str, list[str]] = {}
    for name in sorted(inner):
        kinds.setdefault(kind_of(name), []).append(name)
    others = kinds.pop("", [])
    if not kinds or (others and ("train" not in kinds or len(kinds) < 2)) or (others and folder_classes == "yes"):
        return Splits()
    text = ", ".join(printable(name, 40) for name in sorted(inner))
    if others:
        problem = f"{where}: its sub-folders ({text}) may be splits or classes"
        raise UserError(problem, remedy="name one by `data`, or give `folder_classes` yes")
    if several := next((own for own in kinds.values() if len(own) > 1), None):
        raise UserError(f"{where}: {' and '.join(several)} are of one split", remedy="name one by `data`")
    if len(kinds) == 1:
        return Splits(train=f"{prefix}{inner.pop()}/")
    if "train" not in kinds:
        raise UserError(f"{where}: its sub-folders ({text}) are splits, none for training", remedy="name one by `data`")
    held = kinds.get("validation", kinds.get("test", []))[0]
    unused = tuple(f"{prefix}{name}/" for name in sorted(inner) if name not in (kinds["train"][0], held))
    return Splits(f"{prefix}{kinds['train'][0]}/", f"{prefix}{held}/", unused)
