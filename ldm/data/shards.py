"""The shard files that the setting `data` names, and the listing of all their images."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from ldm.data.config import DataConfig
from ldm.data.decode import ENDINGS
from ldm.data.layouts.metadata import NAMES as METADATA
from ldm.data.listing import Listing, number_classes
from ldm.data.packed import PackedContents, Sample, Shard
from ldm.data.parquet import read_parquet
from ldm.data.tar_shards import read_tar
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

SHARD_ENDINGS = (".tar", ".parquet")
_MAX_SHARDS = 100_000
_UNSUPPORTED = {
    ".arrow": "write the data set as parquet (to_parquet instead of save_to_disk)",
    ".tar.gz": "unpack it by gunzip",
    ".tgz": "unpack it by gunzip",
    ".tar.zst": "unpack it by unzstd",
}
_SPLIT = re.compile(r"(train|validation|valid|val|test)(?![a-z])", re.IGNORECASE)


def find_shards(data: str) -> list[Path] | None:
    """The shards that `data` names, sorted by name; None where it names something else.

    A shard, a folder of shards (or with a folder `data` of them), or a pattern with *, ? or {000..012}.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return [path] if path.suffix in SHARD_ENDINGS else None
    if not any(mark in data for mark in "*?[{"):
        return None
    patterns = list(itertools.islice(_braces(str(path)), _MAX_SHARDS + 1))
    paths = sorted({Path(name) for pattern in patterns for name in glob.glob(pattern)})
    if not paths:
        raise UserError("no file fits this pattern", setting="data", value=printable(data))
    if len(paths) > _MAX_SHARDS or len(patterns) > _MAX_SHARDS:
        raise UserError(f"more than {_MAX_SHARDS} shards", setting="data", value=printable(data))
    return _one_kind(paths, data)


def list_shards(config: DataConfig, paths: list[Path]) -> Listing:
    """All images of these shards with their labels and captions; `UserError` where they do not fit together."""
    columns = (config.image_column, config.label_column, config.text_column)
    shards = [read_tar(path) if path.suffix == ".tar" else read_parquet(path, columns) for path in paths]
    samples = [sample for shard in shards for sample in shard.samples]
    folder = paths[0].parent
    if not samples:
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise UserError(f"{printable(paths[0])}{others}: no image in it")
    names = tuple(sample.name for sample in samples)
    if len(set(names)) < len(names):  # each shard may count from 0, and each row may come from another folder
        names = tuple(
            f"{shard.source.name}/{sample.name if shard.source.suffix == '.tar' else f'{row:08d}'}"
            for shard in shards
            for row, sample in enumerate(shard.samples)
        )
    if len(set(names)) < len(names):
        twice = next(name for name, group in itertools.groupby(sorted(names)) if len(list(group)) > 1)
        raise UserError(f'{printable(folder)}: "{printable(twice)}" is there twice', remedy="names must differ")
    _all_or_none(shards, names, folder)
    given = [sample.label for sample in samples if sample.label is not None]
    labels, class_names = number_classes(given, folder)
    if stored_names := next((shard.class_names for shard in shards if shard.class_names), ()):
        if any(shard.class_names != stored_names for shard in shards) or len(stored_names) < len(class_names):
            raise UserError(f"{printable(folder)}: its files name their classes differently")
        class_names = stored_names
    texts = tuple(sample.texts for sample in samples if sample.texts is not None)
    return Listing(folder, names, labels, texts or None, class_names, PackedContents(shards, names))


def _all_or_none(shards: list[Shard], names: tuple[str, ...], folder: Path) -> None:
    samples: list[Sample] = [sample for shard in shards for sample in shard.samples]
    for what in ("label", "texts"):
        without = [index for index, sample in enumerate(samples) if getattr(sample, what) is None]
        if 0 < len(without) < len(samples):
            problem = f"{len(without)} of {len(samples)} images have no {what.removesuffix('s')}"
            problem = f"{printable(folder)}: {problem}, such as {printable(names[without[0]], 80)}"
            raise UserError(problem, remedy="give all or none one")


def _in_folder(folder: Path) -> list[Path] | None:
    if any((folder / name).is_file() for name in METADATA):
        return None
    for parent in (folder, folder / "data"):
        entries = sorted(parent.glob("[!.]*")) if parent.is_dir() else []
        if any(entry.suffix.lower() in ENDINGS for entry in entries):
            return None
        if shards := [entry for entry in entries if entry.suffix in SHARD_ENDINGS and entry.is_file()]:
            return _one_kind(shards, str(folder))
        for entry in entries:
            if remedy := next((text for ending, text in _UNSUPPORTED.items() if entry.name.endswith(ending)), ""):
                problem = f"{printable(entry.name)} cannot be read image by image"
                raise UserError(problem, remedy=remedy, setting="data", value=printable(folder))
    return None


def _one_kind(paths: list[Path], data: str) -> list[Path]:
    other = next((path for path in paths if path.suffix not in SHARD_ENDINGS or not path.is_file()), None)
    kinds = {path.suffix for path in paths}
    splits = {match[1].lower() for path in paths if (match := _SPLIT.match(path.name))}
    problem = remedy = ""
    if other is not None:
        problem = f"{printable(other)} is neither a .tar nor a .parquet file"
    elif len(kinds) > 1:
        problem, remedy = f"holds {' and '.join(sorted(kinds))} files", "name one kind by a pattern"
    elif len(splits) > 1:
        problem = f"its files are splits ({', '.join(sorted(splits))})"
        split = "train" if "train" in splits else min(splits)
        remedy = f"name one, such as `data` '{printable(paths[0].parent)}/{split}*{paths[0].suffix}'"
    if problem:
        raise UserError(problem, remedy=remedy, setting="data", value=printable(data))
    return paths


def _braces(pattern: str) -> Iterator[str]:
    """`a-{000..012}` and `{a,b}` expanded, in webdataset's notation."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, words = match.groups()
    options = words.split(",") if words else (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    for option in options:
        yield from _braces(pattern[: match.start()] + option + pattern[match.end() :])
