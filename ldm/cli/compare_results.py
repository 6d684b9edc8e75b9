"""`ldm compare results FILE FILE ...`: results of several evaluations side by side, if they were measured alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from ldm.cli.parsing import check_file, parse, require
from ldm.cli.tables import terminal_width
from ldm.runtime.files import atomic_write


@dataclass(frozen=True)
class CompareResultsRun:
    """Show the results of several evaluations side by side; refuse those that were not measured alike."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")] = ()
    """Files of `ldm evaluate --output`, or comparison.json and autoencoders.json of `ldm compare`, or their folders."""
    allow_different: bool = False
    """Show results that do not compare (other numbers of images, features, references, ...) too, marked."""
    output: str = ""
    """A CSV file for the table."""


def run(arguments: list[str]) -> None:
    """Print the table."""
    settings = parse(CompareResultsRun, arguments, "compare results")
    require(settings.files, "FILE", "files of `ldm evaluate --output` or folders of `ldm compare`")
    check_file(settings.output, "figures.csv")
    from ldm.comparison.results import gather_results

    results = gather_results(settings.files, allow_different=settings.allow_different)
    print(results.table(terminal_width()))
    if settings.output:
        atomic_write(settings.output, results.csv())
        print(f"wrote {settings.output}")
