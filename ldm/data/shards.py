"""The shard files that the setting `data` names, and the listing of all their images."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.data.config import DataConfig
from ldm.data.decode import ENDINGS
from ldm.data.layouts.metadata import NAMES as METADATA
from ldm.data.listing import Listing, number_classes
from ldm.data.packed import PackedContents, Sample, Shard
from ldm.data.parquet import read_parquet
from ldm.data.report import PassedOver, Reading
from ldm.data.tar_shards import read_tar
from ldm.runtime.errors import UserError
from ldm.runtime.text import counted, printable

SHARD_ENDINGS = (".tar", ".parquet")
_MAX_SHARDS = 100_000
_UNSUPPORTED = {
    ".arrow": "write the data set as parquet (to_parquet instead of save_to_disk)",
    ".tar.gz": "unpack it by gunzip",
    ".tgz": "unpack it by gunzip",
    ".tar.zst": "unpack it by unzstd",
}
_HELD_OUT = ("validation", "test")  # the held-out split is the first that is there
_SPLIT = re.compile(r"(?<![a-z])(train|training|valid|val|test)(?![a-z])", re.IGNORECASE)


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
    """All images of these shards with their labels and captions; `UserError` where they do not fit together.

    Those whose names have "validation" (or val, test) in them are the held-out split.
    """
    splits = _splits(paths, config.data) if config.layout_version > 1 else Splits(paths)
    paths = [*splits.train, *splits.held_out]
    shards = [read_tar(path, config) if path.suffix == ".tar" else read_parquet(path, config) for path in paths]
    samples = [sample for shard in shards for sample in shard.samples]
    folder = paths[0].parent
    if not samples:
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise UserError(f"{printable(paths[0])}{others}: no image in it")
    if config.layout_version > 1 and config.tar_keys == "unique":
        for part in (shards[: len(splits.train)], shards[len(splits.train) :]):
            _refuse_common_keys([shard for shard in part if shard.source.suffix == ".tar"])
    names = tuple(sample.name for sample in samples)
    if len(set(names)) < len(names):  # each shard may count from 0, and each row may come from another folder
        own = [shard.source.name for shard in shards]
        if len(set(own)) < len(own):
            common = os.path.commonpath([path.parent for path in paths])
            own = [str(shard.source.relative_to(common)) for shard in shards]
        names = tuple(
            f"{prefix}/{sample.name if shard.source.suffix == '.tar' else f'{row:08d}'}"
            for prefix, shard in zip(own, shards, strict=True)
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
    first = sum(len(shard.samples) for shard in shards[: len(splits.train)])
    reading = _reading(shards, splits)
    held_out = frozenset(names[first:]) if splits.held_out else None
    contents = PackedContents(shards, names)
    return Listing(folder, names, labels, texts or None, class_names, contents, reading, held_out)


@dataclass(frozen=True)
class Splits:
    """The shards of each split."""

    train: list[Path]
    held_out: Sequence[Path] = ()
    unused: Sequence[Path] = ()  # a third split
    line: str = ""  # that says so


def _splits(paths: list[Path], data: str) -> Splits:
    """By the names below the folder that all have in common. `UserError` where none is for training."""
    common = Path(os.path.commonpath([path.parent for path in paths]))
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_split_of(str(path.relative_to(common))), []).append(path)
    train = groups.pop("train", [])
    if not groups:
        return Splits(train)
    if not train:
        text = f"all shards are of the split {', '.join(groups)}"
        if Path(data).expanduser().is_dir():
            remedy = f"to train on them, name them by a pattern, such as '{printable(common)}/*{paths[0].suffix}'"
            raise UserError(f"{text}, none is for training", remedy=remedy, setting="data", value=printable(data))
        return Splits(paths, line=f"splits: {text}; `data` names them, so they are read as one set")
    held_out = next(groups.pop(name) for name in _HELD_OUT if name in groups)
    unused = [path for others in groups.values() for path in others]
    text = f"splits: {_listed(train)} for training, {_listed(held_out)} held out"
    return Splits(train, held_out, unused, text)


def _split_of(name: str) -> str:
    """train, validation or test, by the words in a name."""
    if "validation" in name.lower():
        return "validation"
    words = {match[1].lower() for match in _SPLIT.finditer(name)}
    if words & {"val", "valid"}:
        return "validation"
    return "test" if "test" in words else "train"


def _listed(paths: Sequence[Path]) -> str:
    return printable(paths[0].name, 60) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _refuse_common_keys(shards: Sequence[Shard]) -> None:
    owners: dict[str, Shard] = {}
    for shard in shards:
        for sample in shard.samples:
            key = sample.name.rpartition("/")[0] + "/" + sample.name.rpartition("/")[2].partition(".")[0]
            if (other := owners.setdefault(key, shard)) is not shard:
                problem = f'the key "{printable(key.lstrip("/"), 80)}" is in {printable(other.source)} and in '
                remedy = "leave one out, or give `tar_keys` per_shard where each shard counts its own"
                raise UserError(problem + printable(shard.source), remedy=remedy)


def _reading(shards: Sequence[Shard], splits: Splits) -> Reading:
    """What the readers of all shards say, each line once."""
    lines = dict.fromkeys(line for shard in shards for line in shard.reading.fields)
    passed: dict[tuple[str, str], PassedOver] = {}
    for item in (item for shard in shards for item in shard.reading.passed_over):
        key = (item.what, item.reason)
        before = passed.get(key, replace(item, count=0))
        columns = item.what.startswith("column (")  # the same ones in every shard
        passed[key] = replace(before, count=max(before.count, item.count) if columns else before.count + item.count)
    if splits.unused:
        reason = f"its split is neither for training nor {_split_of(splits.held_out[0].name)}; name it by `data`"
        passed["shard", reason] = PassedOver("shard", len(splits.unused), reason, splits.unused[0].name, True)
    layout = f"{counted(len(shards), 'shard')}, {shards[0].reading.layout}"
    return Reading(layout, (*([splits.line] if splits.line else []), *lines), tuple(passed.values()))


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
    problem = remedy = ""
    if other is not None:
        problem = f"{printable(other)} is neither a .tar nor a .parquet file"
    elif len(kinds) > 1:
        problem, remedy = f"holds {' and '.join(sorted(kinds))} files", "name one kind by a pattern"
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
