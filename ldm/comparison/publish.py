"""What a comparison leaves: a table, JSON, CSV, pictures, figures and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.comparison.picture import side_by_side
from ldm.comparison.records import Comparison
from ldm.comparison.report import plots, render, write_csv
from ldm.comparison.verdict import Verdict
from ldm.runtime.files import atomic_write, atomic_write_json

RESULT, TABLE, PICTURE = "comparison.json", "comparison.txt", "comparison.png"
CSV, REPORT = "comparison.csv", "report.html"


def publish(
    comparison: Comparison,
    verdict: Verdict,
    folder: Path,
    strips: Sequence[Path],
    titles: Sequence[str],
    *,
    name: str,
    command: str,
) -> None:
    """Write all files of a comparison into its folder, comparison.json as the last; `strips` are the pictures of the
    cells that it began with, `titles` what their rows were asked for."""
    side_by_side(strips, [cell.label for cell in comparison.everyone], titles, folder / PICTURE)
    atomic_write(folder / TABLE, comparison.table() + "\n")
    atomic_write(folder / CSV, write_csv(comparison))
    for plot in plots(comparison.cells, verdict):
        atomic_write(folder / f"{plot.name}.png", plot.figure.png())
    page = render(comparison, verdict, strips, conditions=titles, command=command, model=name)
    atomic_write(folder / REPORT, page)
    atomic_write_json(folder / RESULT, comparison.to_json() | {"verdict": verdict.sentence})
