"""Tables as text: aligned columns, CSV, and metric values with their errors."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from ldm.evaluation.records import MetricValue
from ldm.runtime.text import printable, replace_unprintable

_LONGEST_IN_HEADER = 12  # characters in the brackets of a name


def align_columns(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Rows with the header first: the first column is aligned to the left, the others to the right.

    Where a `width` is given, long names in the brackets of the header stand below, and columns that do not fit into it
    follow in further blocks under the same first column.
    """
    if width is None:
        return _aligned(rows)
    header, notes = _with_notes(rows[0])
    rows = [header, *rows[1:]]
    widest = max((len(text) for row in rows for text in row[1:]), default=0)
    rows = [[printable(row[0], max(12, width - 2 - widest)), *row[1:]] for row in rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    blocks: list[list[int]] = [[0]]
    for column in range(1, len(header)):
        if len(blocks[-1]) > 1 and sum(widths[k] + 2 for k in blocks[-1]) + widths[column] > width:
            blocks.append([0])
        blocks[-1].append(column)
    return "\n".join(["\n\n".join(_aligned([[row[k] for k in block] for row in rows]) for block in blocks), *notes])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _with_notes(header: Sequence[str]) -> tuple[list[str], list[str]]:
    """`FD[trained-cnn:shapes:52de6987]` as `FD[1]`, and `[1] trained-cnn:shapes:52de6987` for each such name."""
    numbers: dict[str, int] = {}
    short = []
    for text in header:
        name, bracket, inside = text.rstrip("]").partition("[")
        if bracket and len(inside) > _LONGEST_IN_HEADER:
            text = f"{name}[{numbers.setdefault(inside, len(numbers) + 1)}]"
        short.append(text)
    return short, [f"[{number}] {name}" for name, number in numbers.items()]


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV with the header first. No text in them is a formula to a spreadsheet."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_inert(value) for value in row] for row in rows)
    return buffer.getvalue()


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = replace_unprintable(value)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def format_value(value: MetricValue) -> str:
    """Value and standard error; accuracies in per cent."""
    scale, digits, error_digits, unit = (100, ".1f", ".1f", " %") if is_accuracy(value) else (1, ".4g", ".1g", "")
    text = f"{scale * value.value:{digits}}{unit}"
    return text if value.standard_error is None else f"{text} ± {scale * value.standard_error:{error_digits}}"


def is_accuracy(value: MetricValue) -> bool:
    """Whether a value is a share of samples with the expected attribute."""
    return value.metric.startswith("accuracy/")
