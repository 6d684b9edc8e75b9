"""Parquet files of encoded images, the format of Hugging Face data sets. Needs pyarrow: the extra `datasets`.

The images of a parquet file are in compressed pages; to read one, its whole row group must be unpacked. So each file is
unpacked once, row by row, into one file of images in the user's cache folder. From then on it is read like a tar shard:
any image in any order, by any number of workers.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.data.columns import IMAGES, LABELS, TEXTS, Choice, choose, unused_columns
from ldm.data.config import DataConfig
from ldm.data.listing import MAX_LINE, check_label, check_texts
from ldm.data.packed import Sample, Shard, index_path, read_index, write_index
from ldm.data.parquet_file import ParquetReader, open_parquet
from ldm.data.report import PassedOver, Reading
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_file, cache_folder
from ldm.runtime.progress import progress
from ldm.runtime.schema import parse_json
from ldm.runtime.text import counted, printable, suggest

_FIRST_VERSION = (("image", "img", "jpg", "png"), ("label", "labels", "class", "fine_label"), ("text", "caption"))
_IDS = ("image_id", "img_id", "imgid", "cocoid", "image_path", "filename", "file_name")
_CELL_BYTES = 128 * 2**20  # of one encoded image
_EXPANSION = 200  # times the file's size, and a GiB: more images are not what a file of images unpacks to


def read_parquet(path: Path, config: DataConfig) -> Shard:
    """The images of a file, unpacked if they are not yet; the columns are those of the settings, else the usual ones.
    `UserError` for a file that cannot be read or has no images."""
    columns = (config.image_column, config.label_column, config.text_column)
    index = index_path(path, "parquet", *columns, str(config.layout_version))
    images = index.with_suffix(".images")
    content = read_index(index)
    if content is None or not _is_unpacked(images, content[0]):
        content = _unpack(path, images, config)
        write_index(index, *content)
    return Shard(images, path, *content)


def _is_unpacked(images: Path, samples: list[Sample]) -> bool:
    end = max((sample.offset + sample.size for sample in samples), default=0)
    return images.is_file() and images.stat().st_size == end


@dataclass(frozen=True)
class _Columns:
    image: Choice
    label: Choice
    text: Choice
    name: str  # of the column that identifies the image of a row, "" for none

    @property
    def names(self) -> list[str]:
        columns = (self.image.column, self.label.column, self.text.column, self.name)
        return list(dict.fromkeys(name for name in columns if name))


def _unpack(path: Path, images: Path, config: DataConfig) -> tuple[list[Sample], tuple[str, ...], Reading]:
    cache_folder().mkdir(parents=True, exist_ok=True)
    need, free = path.stat().st_size, shutil.disk_usage(cache_folder()).free
    if need > free:
        problem = f"its {need} bytes of images do not fit into {cache_folder()}, where {free} are free"
        raise UserError(f"{printable(path)}: {problem}", remedy="name another folder by LDM_CACHE")
    with atomic_file(images) as temporary, open(temporary, "wb") as out, open_parquet(path) as file:
        columns = _columns(file.schema, config, path)
        merging = _Merging(merge=config.layout_version > 1)
        rows = progress(_rows(file, columns, path), f"unpacking {path.name}", total=file.num_rows)
        for number, row in enumerate(rows):
            if merging.end > _EXPANSION * need + 2**30:
                problem = f"its first {number} images take {merging.end} bytes, {merging.end // need} times the file"
                raise UserError(f"{printable(path)}: {problem}", remedy="write the images as files")
            if (content := merging.add(*row, where=f"{printable(path)}: row {number}")) is not None:
                out.write(content)
        class_names = _class_names(file.schema, columns.label.column)
    choices = [columns.image, columns.label, columns.text]
    others = [name for name in file.schema.names if name != columns.name]
    unused = unused_columns(choices, others) if config.layout_version > 1 else []
    lines = [choice.line for choice in choices if choice.line]
    reading = Reading("parquet", (*lines, *merging.lines()), (*merging.passed_over(), *unused))
    return merging.samples, class_names, reading


def _columns(schema: Any, config: DataConfig, path: Path) -> _Columns:
    """The image, label and text column, and that of the images' names."""
    given = (config.image_column, config.label_column, config.text_column)
    usual = (IMAGES, LABELS, TEXTS) if config.layout_version > 1 else _FIRST_VERSION
    where, kinds = printable(path), ("image", "label", "text")
    if config.layout_version > 1:
        image, label, text = (choose(*names, schema.names, where) for names in zip(kinds, given, usual, strict=True))
    else:
        image, label, text = (_first(*names, schema.names, where) for names in zip(kinds, given, usual, strict=True))
    if not image.column:
        problem = f"{where}: no column of images; name it by `image_column`"
        raise UserError(problem, remedy=suggest("image", schema.names))
    kind = str(schema.field(image.column).type)
    kind = kind.removeprefix("dictionary<values=").partition(",")[0] if kind.startswith("dictionary<") else kind
    if not (kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: " in kind)):
        problem = f'column "{printable(image.column)}" holds {printable(kind, 60)}, expected encoded images'
        raise UserError(f"{where}: {problem}")
    taken = {image.column, label.column, text.column}
    name = next((name for name in _IDS if name in schema.names and name not in taken), "")
    return _Columns(image, label, text, name if config.layout_version > 1 else "")


def _first(kind: str, given: str, usual: tuple[str, ...], present: list[str], where: str) -> Choice:
    """The column by the rules of version 1: the first of the usual names."""
    if given:
        return choose(kind, given, usual, present, where)
    return Choice(next((name for name in usual if name in present), ""))


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The names of the numbers in a column, from the metadata of the datasets library."""
    try:
        metadata = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = metadata["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


Row = tuple[bytes, str, str, int | str | None, tuple[str, ...] | None]  # image, own name, id, label, captions


def _rows(file: ParquetReader, columns: _Columns, path: Path) -> Iterator[Row]:
    image, label, text = columns.image.column, columns.label.column, columns.text.column
    for number, entry in enumerate(file.rows(columns.names)):
        where = f"{printable(path)}: row {number}"
        value = entry[image]
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise UserError(f"{where}: no image in it (a path alone is not enough)")
        if len(content) > _CELL_BYTES:
            raise UserError(f"{where}: an image of {len(content)} bytes, more than {_CELL_BYTES}")
        name = value.get("path") if isinstance(value, dict) else None
        texts = None if not text or entry[text] is None else check_texts(entry[text], where)
        if texts and sum(map(len, texts)) > MAX_LINE:
            raise UserError(f"{where}: a text of more than {MAX_LINE} characters")
        key = str(name or "") or (str(entry[columns.name]) if columns.name and entry[columns.name] is not None else "")
        own = None if not label or entry[label] is None else check_label(entry[label], where)
        yield content, str(name) if name else f"{path.stem}/{number:08d}", key, own, texts


@dataclass
class _Merging:
    """Rows to samples: rows of one image, by its id and its bytes, are one sample with several captions."""

    merge: bool
    samples: list[Sample] = field(default_factory=list)
    end: int = 0  # of the images that are written
    merged: int = 0
    repeated: list[str] = field(default_factory=list)
    _by_key: dict[tuple[str, bytes], int] = field(default_factory=dict)
    _by_content: dict[bytes, int] = field(default_factory=dict)

    def add(
        self, content: bytes, name: str, key: str, label: int | str | None, texts: tuple[str, ...] | None, where: str
    ) -> bytes | None:
        """The bytes to write, None where they are there already."""
        if not self.merge:
            return self._new(content, name, label, texts, self.end)
        digest = hashlib.sha256(content).digest()
        offset = self._by_content.setdefault(digest, self.end)
        if key and (first := self._by_key.setdefault((key, digest), len(self.samples))) < len(self.samples):
            before = self.samples[first]
            if before.label != label:
                problem = f'{where}: the image "{printable(key)}" has label {label!r} here and {before.label!r} before'
                raise UserError(problem, remedy="an image has one class")
            both = None if texts is None and before.texts is None else (*(before.texts or ()), *(texts or ()))
            self.samples[first] = before._replace(texts=None if both is None else tuple(dict.fromkeys(both)))
            self.merged += 1
            return None
        if offset < self.end:
            self.repeated.append(name)
        return self._new(content, name, label, texts, offset)

    def _new(
        self, content: bytes, name: str, label: int | str | None, texts: tuple[str, ...] | None, offset: int
    ) -> bytes | None:
        self.samples.append(Sample(name, offset, len(content), label, texts))
        if offset < self.end:
            return None
        self.end += len(content)
        return content

    def lines(self) -> list[str]:
        rows = f"{counted(self.merged + len(self.samples), 'row')} of {counted(len(self.samples), 'image')}"
        line = f"{rows}: rows of one path or id, and of equal bytes, are one image with several captions"
        return [line] if self.merged else []

    def passed_over(self) -> list[PassedOver]:
        if not self.repeated:
            return []
        reason = "the same bytes as an earlier one, without a common path or id: it stays an image of its own"
        return [PassedOver("repetition of an image", len(self.repeated), reason, self.repeated[0])]
