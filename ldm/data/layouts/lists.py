"""The lists in a folder that give labels and captions of its images, and which of them are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ldm.data.config import DataConfig
from ldm.data.layouts import coco, metadata, stylegan
from ldm.data.layouts.annotations import Annotations, merged
from ldm.data.layouts.tables import TABLES, read_large_json
from ldm.data.layouts.tree import Tree
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable


def read_lists(
    tree: Tree, config: DataConfig, unused: Iterable[str] = (), *, names_only: bool = False
) -> tuple[Annotations | None, set[str]]:
    """What all lists together say, None where there is none; and the files that were read.

    `unused` are the sub-folders whose images are not read; with `names_only` neither captions nor labels are read.
    `UserError` where lists contradict each other.
    """
    if config.metadata_file == "none":
        return None, set()
    if config.metadata_file:
        file = _named(tree, config.metadata_file)
        return _read(tree, file, config, names_only), {file}
    left_out = tuple(unused)
    files = [file for file in tree.files if not file.startswith(left_out)]
    by_folder: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if PurePosixPath(file).name in metadata.NAMES:
            by_folder[file.rpartition("/")[0]].append(file)
    for folder, several in by_folder.items():
        if len(several) > 1 and not names_only:
            names = " and ".join(PurePosixPath(file).name for file in several)
            where = printable(tree.folder / folder)
            raise UserError(f"{where}: holds both {names}", remedy="keep one, or name one by `metadata_file`")
    tables = [file for several in by_folder.values() for file in several]
    parts = {file: metadata.read_metadata(tree, file, config, names_only=names_only) for file in tables}
    for file in files:
        name = PurePosixPath(file).name
        if name == stylegan.NAME and stylegan.is_stylegan(content := read_large_json(tree.folder / file)):
            parts[file] = stylegan.read_stylegan(tree, file, content)
        elif coco.NAME.fullmatch(name) and coco.is_coco(content := read_large_json(tree.folder / file)):
            parts[file] = coco.read_coco(tree, file, content)
    if parts and not any(part.names for part in parts.values()):
        file, part = next(iter(parts.items()))
        missing = sum(item.count for item in part.passed_over)
        problem = f"{printable(tree.folder / file)}: none of its {missing} images is in {printable(tree.folder)}"
        raise UserError(problem, remedy="name the folder that holds the list and the images by `data`")
    if names_only:
        for part in parts.values():
            part.captions, part.labels = {}, {}
    return merged(list(parts.values())), set(parts)


def _named(tree: Tree, given: str) -> str:
    """The path in the folder of the file that the setting names, relative to the folder or as the shell has it."""
    path = PurePosixPath(given)
    if not path.is_absolute() and ".." not in path.parts and str(path) in tree.known:
        return str(path)
    for file in tree.known if Path(given).is_file() else ():
        if PurePosixPath(file).name == path.name and (tree.folder / file).samefile(given):
            return file
    tables = [file for file in tree.files if PurePosixPath(file).suffix in (*TABLES, ".json")]
    remedy = f"there: {', '.join(map(printable, tables[:8])) or 'no list'}"
    raise UserError("no such file in the folder", remedy=remedy, setting="metadata_file", value=printable(given))


def _read(tree: Tree, file: str, config: DataConfig, names_only: bool) -> Annotations:
    ending = PurePosixPath(file).suffix
    if ending in TABLES:
        return metadata.read_metadata(tree, file, config, names_only=names_only)
    content = read_large_json(tree.folder / file) if ending == ".json" else None
    if coco.is_coco(content):
        return coco.read_coco(tree, file, content)
    if stylegan.is_stylegan(content):
        return stylegan.read_stylegan(tree, file, content)
    known = f"{', '.join(TABLES)}, or .json as of COCO (captions_*.json) or StyleGAN (dataset.json)"
    raise UserError(f"not a list of images; known: {known}", setting="metadata_file", value=printable(file))
