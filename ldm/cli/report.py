"""`ldm report RUN`: one HTML file of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ldm.cli.parsing import check_file, parse, require
from ldm.cli.quickstart_folder import is_quickstart, result_of
from ldm.runtime.files import atomic_write


@dataclass(frozen=True)
class ReportRun:
    """Write curves, samples over time, metrics and settings of a training, or the results of a quick start, into one
    HTML file."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """Output folder of `ldm train`, finished or not, or that of a finished `ldm quickstart`."""
    output: str = ""
    """The file to write; default: report.html in the run folder."""


def run(arguments: list[str]) -> None:
    """Write the page and print its path."""
    settings = parse(ReportRun, arguments, "report")
    require(settings.run, "RUN", "the output folder of `ldm train`")
    target = Path(settings.output) if settings.output else Path(settings.run) / "report.html"
    check_file(target, "report.html")
    atomic_write(target, _render(Path(settings.run)))
    print(f"wrote {target}")


def _render(run: Path) -> str:
    if is_quickstart(run):
        from ldm.comparison.quickstart_report import render_quickstart

        return render_quickstart(run, result_of(run))
    from ldm.reports.run import render_run

    return render_run(run)
