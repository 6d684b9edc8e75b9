"""Tables of images: JSON lines, a JSON list, CSV, TSV or parquet, one row after another."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.data.listing import MAX_LINE
from ldm.data.parquet_file import open_parquet
from ldm.runtime.errors import UserError
from ldm.runtime.schema import parse_json
from ldm.runtime.text import printable

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
MAX_JSON = 192 * 2**20  # bytes of one JSON file; the captions of COCO take 92 MB
_ROWS = 4096  # of a parquet file, read at a time
Row = tuple[int, dict[str, Any]]  # line or row number, values by column


def table_columns(path: Path) -> tuple[str, ...]:
    """The columns of a table: those of its head, or all keys of its rows that have a value somewhere."""
    if path.suffix == ".parquet":
        with open_parquet(path) as file:
            return tuple(file.schema.names)
    if path.suffix in (".csv", ".tsv"):
        with _text(path) as stream:
            return tuple(_csv_reader(stream, path).fieldnames or ())
    keys: dict[str, None] = {}
    for _, row in table_rows(path):
        keys |= {name: None for name, value in row.items() if value is not None}
    return tuple(keys)


def table_rows(path: Path, columns: tuple[str, ...] = ()) -> Iterator[Row]:
    """(line, row) of a table; of parquet only these columns are unpacked. `UserError` names file and line."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    try:
        with _text(path) as stream:
            yield from _csv_rows(stream, path) if path.suffix in (".csv", ".tsv") else _json_rows(stream, path)
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)}: not UTF-8 text ({error.reason})") from None


def read_large_json(path: Path) -> Any:
    """The content of a JSON file of annotations; `UserError` where it is none, or too large."""
    if path.stat().st_size > MAX_JSON:
        raise UserError(f"{printable(path)}: larger than {MAX_JSON} bytes", remedy="write it as JSON lines")
    try:
        return parse_json(path.read_bytes(), limit=MAX_JSON)
    except ValueError as error:
        raise UserError(f"{printable(path)}: not valid JSON ({printable(error)})") from None


def _text(path: Path) -> Any:
    return open(path, encoding="utf-8-sig", newline="")


def _json_rows(stream: Any, path: Path) -> Iterator[Row]:
    line = 0
    while text := stream.readline(MAX_LINE):
        line += 1
        if len(text) == MAX_LINE:
            raise UserError(f"{printable(path)}, line {line}: longer than {MAX_LINE} characters")
        if not text.strip():
            continue
        try:
            row = parse_json(text)
        except ValueError as error:
            raise UserError(f"{printable(path)}, line {line}: not valid JSON ({printable(error)})") from None
        if not isinstance(row, dict):
            problem = f'expected {{"file_name": ..., "text": ...}}, got {printable(text, 60)}'
            raise UserError(f"{printable(path)}, line {line}: {problem}")
        yield line, row


def _csv_reader(stream: Any, path: Path) -> csv.DictReader[str]:
    reader = csv.DictReader(stream, strict=True, delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        names = list(reader.fieldnames or ())  # reads the first line
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f'{printable(path)}: two columns are named "{printable(twice)}"', remedy="rename one")
    except csv.Error as error:
        raise UserError(f"{printable(path)}, line {reader.line_num}: not valid CSV ({printable(error)})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)}: not UTF-8 text ({error.reason})") from None
    return reader


def _csv_rows(stream: Any, path: Path) -> Iterator[Row]:
    reader = _csv_reader(stream, path)
    header = reader.fieldnames or []
    try:
        for row in reader:
            if None in row or any(value is None for value in row.values()):
                raise UserError(f"{printable(path)}, line {reader.line_num}: expected {len(header)} columns")
            yield reader.line_num, {name: value or None for name, value in row.items()}
    except csv.Error as error:
        raise UserError(f"{printable(path)}, line {reader.line_num}: not valid CSV ({printable(error)})") from None


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    with open_parquet(path) as file:
        yield from enumerate(file.rows(columns, _ROWS))
