"""Tables as text: aligned columns, CSV, and metric values with their errors."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from ldm.evaluation.records import MetricValue
from ldm.runtime.text import replace_unprintable


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows with the header first: the first column is aligned to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


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
