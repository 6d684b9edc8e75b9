"""The images of a folder with their labels and captions, in any of the layouts of `ldm.data.layouts`, also mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.data.config import COLUMN_SETTINGS, DataConfig
from ldm.data.decode import ENDINGS
from ldm.data.layouts.annotations import Annotations
from ldm.data.layouts.caption_files import CaptionFiles, beside, from_folder
from ldm.data.layouts.class_folders import class_folders, listed
from ldm.data.layouts.left_over import left_over
from ldm.data.layouts.lists import read_lists
from ldm.data.layouts.splits import Splits, find_splits
from ldm.data.layouts.tables import TABLES
from ldm.data.layouts.tree import Tree, scan
from ldm.data.layouts.version_1 import list_by_version_1
from ldm.data.listing import Listing, number_classes
from ldm.data.pixels import FolderContents
from ldm.data.report import PassedOver, Reading
from ldm.runtime.errors import UserError
from ldm.runtime.text import counted, printable

_STRAYS = 0.01  # the fraction of images beside folders of splits that are taken for stray ones


def list_folder(folder: str | Path, config: DataConfig | None = None, *, images_only: bool = False) -> Listing:
    """The images of a folder, by its lists, caption files and sub-folders; `images_only`: without classes and captions.

    `UserError` where the folder can be read in two ways; it names the setting that decides.
    """
    folder, config = Path(folder), config or DataConfig()
    if not folder.is_dir():
        raise UserError(f"{printable(folder)}: {'not a folder' if folder.exists() else 'no such folder'}")
    if config.layout_version == 1:
        return list_by_version_1(folder)
    return _FolderReader(scan(folder), config, images_only).listing()


@dataclass
class _FolderReader:
    """What is found about one folder, step by step."""

    tree: Tree
    config: DataConfig
    images_only: bool

    def __post_init__(self) -> None:
        self.where = printable(self.tree.folder)
        self.layout: list[str] = []
        self.fields: list[str] = []
        self.conditions: list[PassedOver] = []
        self.left_images: dict[str, list[str]] = {}  # by the reason
        self.used: set[str] = set()

    def listing(self) -> Listing:
        """All steps."""
        tree, config = self.tree, self.config
        splits = find_splits(tree.images, config.folder_classes, self.where)
        if self.images_only and not splits.validation:
            splits = Splits()
        lists, files = read_lists(tree, config, splits.unused, names_only=self.images_only)
        self.used |= files
        names = self._of_splits(self._named(lists, splits), splits)
        if not names:
            raise self._nothing()
        labels, names = self._labels(names, lists, splits)
        captions = {} if self.images_only else self._captions(names, lists)
        self.used |= {*names}
        unused = () if any(file.endswith(TABLES) for file in files) else config.changed(*COLUMN_SETTINGS)
        why = "this folder has no list with columns"
        settings = [PassedOver(f"setting (`{name}`)", 1, why, condition=True) for name in unused]
        passed = [*settings, *self.conditions, *left_over(tree, self.used, self.left_images)]
        if self.images_only:
            passed = [replace(item, condition=False) for item in passed if not item.what.startswith("column")]
        numbers, class_names = number_classes([labels[name] for name in names] if labels else [], tree.folder)
        held_out = frozenset(name for name in names if splits.validation and name.startswith(splits.validation))
        texts = tuple(captions.get(name, ("",)) for name in names) if captions else None
        reading = Reading(", ".join(self.layout) or "images alone", tuple(self.fields), tuple(passed))
        contents = FolderContents(tree.folder, names)
        own = held_out if splits.validation else None
        return Listing(tree.folder, tuple(names), numbers, texts, class_names, contents, reading, own)

    def _named(self, lists: Annotations | None, splits: Splits) -> list[str]:
        """The images of the lists, in their order where one list is about the whole folder; and those of no list."""
        images = [name for name in self.tree.images if not name.startswith(splits.unused)]
        for prefix in splits.unused:
            unused = [name for name in self.tree.images if name.startswith(prefix)]
            self._leave(f"of the split {printable(prefix)}", unused)
        if lists is None:
            return images
        self.layout.append(lists.source)
        rows = f", {counted(lists.rows, 'row')}" if lists.rows else ""
        self.fields.append(f"{printable(lists.source)}{rows}: {lists.how}")
        self.conditions += lists.passed_over
        free = [name for name in images if name not in lists.names]
        unlisted = [name for name in free if lists.covers(name)]
        self._leave(f"not listed in {printable(lists.source)}", unlisted)
        if lists.parents == ("",):
            return list(lists.names)
        left = {*unlisted}
        return sorted({*lists.names, *(name for name in free if name not in left)})

    def _of_splits(self, names: list[str], splits: Splits) -> list[str]:
        if not splits.train:
            return names
        read = (splits.train, splits.validation or splits.train)
        outside = [name for name in names if not name.startswith((*read, *splits.unused))]
        if len(outside) > max(1, _STRAYS * len(names)):
            problem = f"{self.where}: {counted(len(outside), 'image')} beside {printable(splits.train)}"
            raise UserError(problem, remedy="name the folder with the images for training by `data`")
        self._leave(f"outside {printable(splits.train)}", outside)
        self.layout.append(f"{printable(splits.train)} and {printable(splits.validation)}" if splits.validation
                           else printable(splits.train))  # fmt: skip
        if splits.validation:
            self.fields.append(f"splits: {printable(splits.train)} trains, {printable(splits.validation)} is held out")
        return [name for name in names if name.startswith(read)]

    def _labels(
        self, names: list[str], lists: Annotations | None, splits: Splits
    ) -> tuple[dict[str, int | str], list[str]]:
        """The label of each image, {} for none, and the images without stray ones."""
        if self.images_only:
            return {}, names
        if lists is not None and lists.labels:
            without = [name for name in names if name not in lists.labels]
            if without:
                problem = f"{self.where}: {len(without)} of {counted(len(names), 'image')} have no label in "
                problem += f"{printable(lists.source)}, such as {printable(without[0], 80)}"
                raise UserError(problem, remedy="give all or none one")
            return {name: lists.labels[name] for name in names}, names
        train = [name for name in names if name.startswith(splits.train)]
        folders = class_folders(train, splits.train, self.config.folder_classes, self.where)
        if folders is None:
            return {}, names
        kinds = sorted({*folders.labels.values()})
        if lists is not None and self.config.folder_classes == "auto" and lists.spans(folders.parent, kinds):
            reason = f"{printable(lists.source)} gives no classes; with `folder_classes` yes these are the classes"
            loss = not lists.says_unlabelled
            self.conditions.append(PassedOver(f"sub-folder ({listed(kinds)})", len(kinds), reason, condition=loss))
            return {}, names
        labels: dict[str, int | str] = {**folders.labels}
        if splits.validation:
            parent = splits.validation + folders.parent[len(splits.train) :]
            own = [name for name in names if name.startswith(parent) and "/" in name[len(parent) :]]
            labels |= {name: name[len(parent) :].split("/")[0] for name in own}
            if missing := sorted({str(labels[name]) for name in own} - {*kinds}):
                problem = (
                    f"{self.where}: {printable(splits.validation)} has classes that {printable(splits.train)} lacks"
                )
                raise UserError(f"{problem} ({listed(missing)})", remedy="give both the same, or `folder_classes` no")
        self._leave("beside the class folders", [name for name in names if name not in labels])
        of = f" of {printable(folders.parent)}" if folders.parent else ""
        self.fields.append(f"classes: the sub-folders{of} (`folder_classes`)")
        self.layout.append("class folders")
        return labels, [name for name in names if name in labels]

    def _captions(self, names: Sequence[str], lists: Annotations | None) -> dict[str, tuple[str, ...]]:
        given, setting = (lists.captions if lists is not None else {}), self.config.captions_from
        if setting == "metadata":
            if not given:
                raise UserError("no list of this folder has captions", setting="captions_from", value=setting)
            return self._without_files(given, beside(self.tree, names), setting)
        if setting not in ("auto", "files"):
            return self._from_files(from_folder(self.tree, names, setting))
        files = beside(self.tree, names)
        if files is None:
            if setting == "files":
                raise UserError("no .txt or .caption file beside an image", setting="captions_from", value=setting)
            return given
        if given and setting == "auto":
            texts = files.read(replace(self.config, caption_lines="each"))
            if not all({*own} <= {*given.get(name, ())} for name, own in texts.items()):
                problem = f"{self.where}: captions in {printable(lists.source if lists else '')} and in "
                problem += f"{counted(len(texts), 'file')} beside the images, which differ"
                raise UserError(problem, remedy="give `captions_from` metadata or files")
            return self._without_files(given, files, "the same")
        return self._from_files(files)

    def _without_files(self, given: dict[str, tuple[str, ...]], files: CaptionFiles | None, why: str) -> dict[str, Any]:
        """The captions of the list; the caption files are accounted for."""
        if files is not None:
            own = [*files.files.values()]
            self.used |= {*own}
            reason = "the list has the same captions" if why == "the same" else "`captions_from` metadata"
            self.conditions.append(PassedOver("caption file", len(own), reason, own[0]))
        return given

    def _from_files(self, files: CaptionFiles) -> dict[str, tuple[str, ...]]:
        captions = files.read(self.config)
        self.layout.append("captions in files")
        self.fields.append(files.line)
        if empty := [file for name, file in files.files.items() if name not in captions]:
            self.conditions.append(PassedOver("caption file", len(empty), "empty", empty[0]))
        root = self.tree.folder.resolve()
        if files.folder.resolve().is_relative_to(root):
            prefix = "" if files.folder.resolve() == root else f"{files.folder.resolve().relative_to(root)}/"
            self.used |= {prefix + file for file in files.files.values()}
        return captions

    def _leave(self, reason: str, names: list[str]) -> None:
        if names:
            self.left_images[reason] = names

    def _nothing(self) -> UserError:
        count = len(self.tree.files)
        files = f"{counted(count, 'file')}, none an image" if count else "no file"
        remedy = f"looked for {', '.join(ENDINGS)}, in sub-folders as well"
        return UserError(f"{self.where}: holds {files}", remedy=remedy)
