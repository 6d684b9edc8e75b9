"""captions_*.json of COCO: a list of images and a list of captions, several for each image.

Its file names have no folder: an image is the one file of that name below the folder, in a sub-folder that is named
as the list ends (captions_train2017.json: train2017) where there are several.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

from ldm.data.layouts.annotations import Annotations
from ldm.data.layouts.tree import Tree
from ldm.data.listing import check_texts
from ldm.data.report import PassedOver
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

NAME = re.compile(r"captions(_[\w-]+)?\.json", re.IGNORECASE)


def is_coco(content: Any) -> bool:
    """Whether a JSON file has the two lists."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def read_coco(tree: Tree, file: str, content: Any) -> Annotations:
    """The captions of a list. Images of it that are not there are passed over."""
    where = printable(tree.folder / file)
    pure = PurePosixPath(file)
    listed = Annotations(file)
    if not is_coco(content):
        raise UserError(f'{where}: expected {{"images": [...], "annotations": [...]}}')
    split = pure.stem.partition("_")[2]
    paths: dict[str, list[str]] = defaultdict(list)
    for name in tree.images:
        paths[PurePosixPath(name).name].append(name)
    names: dict[Any, str] = {}
    absent: list[str] = []
    for number, image in enumerate(content["images"]):
        file_name, key = (image.get("file_name"), image.get("id")) if isinstance(image, dict) else (None, None)
        if not isinstance(file_name, str) or not isinstance(key, str | int):
            raise UserError(f"{where}: image {number} needs an id and a file_name, got {printable(repr(image), 60)}")
        candidates = paths.get(PurePosixPath(file_name).name, [])
        if len(candidates) > 1:
            candidates = [path for path in candidates if split and split in PurePosixPath(path).parts[:-1]] or [
                path for path in candidates if path.endswith(f"/{file_name}")
            ]
        if len(candidates) > 1:
            problem = f'{where}: "{printable(file_name)}" may be {" or ".join(map(printable, candidates[:2]))}'
            raise UserError(problem, remedy="give the images different names")
        if candidates:
            names[key] = candidates[0]
            listed.names.setdefault(candidates[0], number)
        else:
            absent.append(file_name)
    captions = 0
    for number, annotation in enumerate(content["annotations"]):
        at = f"{where}: annotation {number}"
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(key, str | int) or "caption" not in annotation:
            raise UserError(f"{at}: expected an image_id and a caption, got {printable(repr(annotation), 60)}")
        if key in names:
            captions += 1
            listed.add_captions(names[key], check_texts(annotation["caption"], at))
    listed.rows, listed.how = captions, "captions of COCO"
    if absent:
        listed.passed_over.append(PassedOver("image", len(absent), "listed, but there is no such file", absent[0]))
    return listed
