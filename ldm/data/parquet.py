"""Parquet files of encoded images, the format of Hugging Face data sets. Needs pyarrow: the extra `datasets`.

The images of a parquet file are in compressed pages; to read one, its whole row group must be unpacked. So each file is
unpacked once, a few rows at a time, into one file of images in the user's cache folder. From then on it is read like a
tar shard: any image in any order, by any number of workers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.data.decode import MAX_BYTES
from ldm.data.listing import MAX_LINE, check_label, check_texts
from ldm.data.packed import Sample, Shard, index_path, read_index, write_index
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_file, cache_folder
from ldm.runtime.progress import progress
from ldm.runtime.schema import parse_json
from ldm.runtime.text import printable, suggest

_IMAGES, _TEXTS = ("image", "img", "jpg", "png"), ("text", "caption")
_LABELS = ("label", "labels", "class", "fine_label")
_ROWS = 64  # read at a time
_ROW_GROUP_BYTES = 4 * 2**30  # of one row group, unpacked


def read_parquet(path: Path, columns: tuple[str, str, str]) -> Shard:
    """The images of a file, unpacked if they are not yet. `columns` names image, label and text ("": the usual names).
    `UserError` for a file that cannot be read or has no images."""
    index = index_path(path, "parquet", *columns)
    images = index.with_suffix(".images")
    content = read_index(index)
    if content is None or not _is_unpacked(images, content[0]):
        content = _unpack(path, images, columns)
        write_index(index, *content)
    return Shard(images, path, *content)


def _is_unpacked(images: Path, samples: list[Sample]) -> bool:
    last = samples[-1] if samples else None
    return images.is_file() and images.stat().st_size == (last.offset + last.size if last else 0)


def _unpack(path: Path, images: Path, columns: tuple[str, str, str]) -> tuple[list[Sample], tuple[str, ...]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{printable(path)}: parquet needs pyarrow: pip install 'guided-latents[datasets]'") from None
    cache_folder().mkdir(parents=True, exist_ok=True)
    need, free = path.stat().st_size, shutil.disk_usage(cache_folder()).free
    if need > free:
        problem = f"its {need} bytes of images do not fit into {cache_folder()}, where {free} are free"
        raise UserError(f"{printable(path)}: {problem}", remedy="name another folder by LDM_CACHE")
    try:
        with (
            atomic_file(images) as temporary,
            parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file,
            open(temporary, "wb") as out,
        ):
            for group in range(file.metadata.num_row_groups):
                if (size := file.metadata.row_group(group).total_byte_size) > _ROW_GROUP_BYTES:
                    problem = f"{printable(path)}: row group {group} has {size} bytes"
                    raise UserError(problem, remedy="write smaller row groups")
            names, class_names = _columns(file.schema_arrow, columns, path)
            samples, offset = [], 0
            batches = file.iter_batches(batch_size=_ROWS, columns=[name for name in names if name])
            total = -(-file.metadata.num_rows // _ROWS)
            for content, sample in _rows(progress(batches, f"unpacking {path.name}", total=total), names, path):
                out.write(content)
                samples.append(sample._replace(offset=offset))
                offset += sample.size
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{printable(path)}: not a whole parquet file ({printable(error, 120)})") from None
    return samples, class_names


def _columns(schema: Any, requested: tuple[str, str, str], path: Path) -> tuple[tuple[str, str, str], tuple[str, ...]]:
    """The names of the image, label and text column ("" for none), and the class names in the file."""
    names = []
    for flag, given, usual in zip(("image", "label", "text"), requested, (_IMAGES, _LABELS, _TEXTS), strict=True):
        if given and given not in schema.names:
            problem = f'{printable(path)}: no column "{printable(given)}" (`{flag}_column`)'
            raise UserError(problem, remedy=suggest(given, schema.names))
        names.append(given or next((name for name in usual if name in schema.names), ""))
    image, label, text = names
    if not image:
        problem = f"{printable(path)}: no column of images; name it by `image_column`"
        raise UserError(problem, remedy=suggest("image", schema.names))
    kind = str(schema.field(image).type)
    if not (kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: " in kind)):
        problem = f'column "{printable(image)}" holds {printable(kind, 60)}, expected encoded images'
        raise UserError(f"{printable(path)}: {problem}")
    return (image, label, text), _class_names(schema, label)


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The names of the numbers in a column, from the metadata of the datasets library."""
    try:
        metadata = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = metadata["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _rows(batches: Any, names: tuple[str, str, str], path: Path) -> Iterator[tuple[bytes, Sample]]:
    image, label, text = names
    row = 0
    for batch in batches:
        for entry in batch.to_pylist():
            where = f"{printable(path)}: row {row}"
            value = entry[image]
            content = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(content, bytes):
                raise UserError(f"{where}: no image in it (a path alone is not enough)")
            if len(content) > MAX_BYTES:
                raise UserError(f"{where}: an image of more than {MAX_BYTES} bytes")
            name = value.get("path") if isinstance(value, dict) else None
            texts = None if not text or entry[text] is None else check_texts(entry[text], where)
            if texts and sum(map(len, texts)) > MAX_LINE:
                raise UserError(f"{where}: a text of more than {MAX_LINE} characters")
            number = None if not label or entry[label] is None else check_label(entry[label], where)
            own = str(name) if name else f"{path.stem}/{row:08d}"
            yield content, Sample(own, 0, len(content), number, texts)
            row += 1
