"""Tables in the terminal: at most as wide as it is."""

from __future__ import annotations

import itertools
import shutil
import sys
import textwrap
from collections.abc import Sequence

_LEAST = 8  # characters of a column


def terminal_width() -> int | None:
    """The number of columns of the terminal; None where the output goes elsewhere, which has no limit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped_table(head: Sequence[object], rows: Sequence[Sequence[object]], width: int | None) -> str:
    """Columns aligned to the left; in a narrow terminal the texts of the widest ones take several lines."""
    table = [[str(text) for text in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    longest_words = [max(len(w) for row in table for w in (row[column].split() or [""])) for column in range(len(head))]
    for least in (longest_words, [_LEAST] * len(head)):  # words are broken only where there is no other way
        while width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
            room = [own - low for own, low in zip(widths, least, strict=True)]
            if max(room) <= 0:
                break
            widths[max(range(len(widths)), key=lambda column: (room[column] > 0, widths[column]))] -= 1
    lines = []
    for row in table:
        parts = [textwrap.wrap(text, w, break_on_hyphens=False) or [""] for text, w in zip(row, widths, strict=True)]
        for texts in itertools.zip_longest(*parts, fillvalue=""):
            lines.append("  ".join(text.ljust(own) for text, own in zip(texts, widths, strict=True)).rstrip())
    return "\n".join(lines)
