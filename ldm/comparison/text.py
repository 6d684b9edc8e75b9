"""Tables as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from ldm.runtime.text import replace_unprintable


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the head first, under each other: the first column to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def csv_of(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV, the head first; no text that somebody wrote is a formula to a spreadsheet."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_inert(value) for value in row] for row in rows)
    return buffer.getvalue()


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = replace_unprintable(value)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text
