"""A sub-folder for each class, as torchvision's ImageFolder reads it, also one or more levels down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ldm.runtime.errors import UserError
from ldm.runtime.text import counted, printable

_STRAYS = 0.01  # the fraction of images beside class folders that are taken for stray ones


@dataclass(frozen=True)
class ClassFolders:
    """The class of each image by its folder, the folder of the class folders ("" or "images/")."""

    labels: dict[str, str]
    parent: str


def class_folders(names: Sequence[str], prefix: str, setting: str, where: str) -> ClassFolders | None:
    """The class folders of images whose paths all begin with `prefix`, in the first folder of several; None for none.

    `setting` is `folder_classes`. `UserError` where it cannot be decided what images beside the folders are.
    """
    if setting == "no" or not names:
        return None
    parent = prefix
    while True:
        inner = Counter(name[len(parent) :].split("/")[0] for name in names if "/" in name[len(parent) :])
        strays = tuple(name for name in names if "/" not in name[len(parent) :])
        if len(inner) != 1 or strays:
            break
        parent += f"{next(iter(inner))}/"
    if not inner and setting == "yes" and parent != prefix:  # a single class
        own = parent.rstrip("/").rsplit("/", 1)
        return ClassFolders(dict.fromkeys(names, own[-1]), parent[: -len(own[-1]) - 1])
    if len(inner) < 2 and not (inner and setting == "yes"):
        return None
    if len(strays) > max(1, _STRAYS * len(names)) and setting == "auto":
        problem = f"{where}: {counted(len(strays), 'image')} beside {counted(len(inner), 'sub-folder')} with images"
        raise UserError(problem, remedy="with `folder_classes` yes they are left out, with no all are without classes")
    left = set(strays)
    labels = {name: name[len(parent) :].split("/")[0] for name in names if name not in left}
    return ClassFolders(labels, parent)


def listed(folders: Sequence[str]) -> str:
    """Some names of folders, for a message."""
    return ", ".join(printable(name, 40) for name in folders[:4]) + (", ..." if len(folders) > 4 else "")
