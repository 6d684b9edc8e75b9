"""The report of a comparison: one HTML file that needs nothing else, for the screen, the phone and the keyboard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.comparison.records import Cell, Comparison, Round
from ldm.comparison.text import csv_of
from ldm.comparison.verdict import Verdict, pareto_front
from ldm.evaluation.baseline import baseline_line
from ldm.evaluation.records import MetricValue
from ldm.reports.page import data_url, fill
from ldm.reports.plots import Point, Scatter

_FIXED = ("evaluations/image", "seconds/image", "peak MB")


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell of the table: what it is sorted by, its text, and an interval or error in small print."""

    value: str
    text: str
    more: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure of the report: the name of its file, what it shows, and the figure."""

    name: str
    caption: str
    figure: Scatter


def write_csv(comparison: Comparison) -> str:
    """One line a cell: label, method, scales, sampler, steps, every figure with error and interval, and the cost."""
    rows = comparison.rows()
    return csv_of([list(rows[0]), *(list(row.values()) for row in rows)])


def render(
    comparison: Comparison,
    verdict: Verdict,
    strips: Sequence[Path],
    *,
    conditions: Sequence[str] = (),
    command: str = "",
    model: str = "this model",
) -> str:
    """The page; `strips` are the pictures of all cells in their order, `conditions` those of the rows."""
    cells, rounds = comparison.cells, comparison.rounds
    return fill(
        "comparison.html.j2",
        model=model,
        verdict=verdict,
        manifest=dict(comparison.manifest),
        warnings=comparison.warnings,
        heads=["method", *map(_short, cells[0].result.figures), *_FIXED],
        rows=[{"best": cell == verdict.best, "cells": _row(cell)} for cell in cells],
        floor=_floor_row(comparison),
        floor_told=baseline_line(comparison.floor.provenance) if comparison.floor.provenance else "",
        left_out=comparison.left_out,
        rounds=[
            {"num_images": each.num_images, "rows": [_of_round(cell, each, verdict.metric) for cell in each.cells]}
            for each in rounds
        ],
        plots=[{"svg": plot.figure.svg(), "caption": plot.caption} for plot in plots(cells, verdict)],
        columns=_columns(comparison.everyone, strips),
        conditions=[text for text in conditions if text],
        rows_shown=comparison.manifest["rows"],
        command=command,
        manifest_text=json.dumps(comparison.to_json()["manifest"], indent=1, ensure_ascii=False),
    )


def _row(cell: Cell) -> list[Shown]:
    peak = "" if cell.peak_memory is None else f"{cell.peak_memory / 1e6:.0f}"
    cost = cell.result.evaluations_per_image, cell.result.seconds_per_image
    return [
        Shown(cell.label, cell.label),
        *map(_figure, cell.result.figures),
        *(Shown(repr(value), f"{value:.3g}") for value in cost),
        Shown(peak, peak or "-"),
    ]


def _floor_row(comparison: Comparison) -> list[Shown]:
    """What real images have in the place of samples; [] where it was not measured."""
    found = {figure.metric: figure for figure in comparison.floor.figures}
    measured = [figure.metric for figure in comparison.cells[0].result.figures]
    none = Shown("", "-")
    each = [_figure(found[name]) if name in found else none for name in measured]
    return [Shown("floor", "floor"), *each, *[none] * len(_FIXED)] if found else []


def _of_round(cell: Cell, of: Round, metric: str) -> list[Shown]:
    figure = _figure(cell.result[metric])
    return [Shown(cell.label, cell.label), figure, Shown("", "left" if cell.label in of.left else "went on")]


def _short(figure: MetricValue) -> str:
    """The name without the extractor's, which the page says once."""
    return figure.name if figure.metric.startswith("accuracy/") else figure.name.split("[")[0]


def _figure(figure: MetricValue) -> Shown:
    share = figure.metric.startswith("accuracy/")
    scale, digits, unit = (100, ".1f", " %") if share else (1, ".4g", "")
    more = ""
    if figure.interval is not None:
        more = f"[{figure.interval[0] * scale:{digits}}, {figure.interval[1] * scale:{digits}}]"
    elif figure.standard_error is not None:
        more = f"± {figure.standard_error * scale:{'.1f' if share else '.2g'}}"
    return Shown(repr(figure.value), f"{figure.value * scale:{digits}}{unit}", more)


def plots(cells: Sequence[Cell], verdict: Verdict) -> list[Plot]:
    """Quality against what the data's variety is reached of, against what was asked for, and against cost."""
    if not verdict.metric:
        return []
    quality, names = verdict.metric, {figure.metric: _short(figure) for figure in cells[0].result.figures}
    variety: list[str] = [*({"recall", "coverage", "diversity"} & names.keys())]
    others = sorted(variety, reverse=True)[:1] + [name for name in names if name.startswith("accuracy/")][:1]
    found = []
    for other in [*others, ""]:
        points = [
            _point(cell, cell.result[other].value if other else cell.result.evaluations_per_image, quality)
            for cell in cells
        ]
        front = [cell.label for cell in pareto_front(cells, quality, other)]
        x_name = names[other] if other else "network evaluations an image"
        caption = (
            f"{names[quality]} against {names[other] if other else 'cost'}. No cell beats in both: {', '.join(front)}."
        )
        name = f"quality-{other.split('/')[0] or 'cost'}"
        found.append(Plot(name, caption, Scatter(points, x_name, names[quality], front)))
    return found


def _point(cell: Cell, x: float, quality: str) -> Point:
    figure = cell.result[quality]
    return Point(cell.label, cell.method, x, figure, cell.label.partition(" | ")[2])


def _columns(cells: Sequence[Cell], strips: Sequence[Path]) -> list[dict[str, Any]]:
    """One column a method and sampler, with a picture for each scale."""
    columns: dict[str, dict[str, Any]] = {}
    for cell, strip in zip(cells, strips, strict=True):
        name, _, under = cell.label.partition(" | ")
        key = cell.method + (f" | {under}" if under else "")
        column = columns.setdefault(key, {"name": key, "labels": [], "pictures": []})
        column["labels"].append(name.removeprefix(cell.method).strip() or "-")
        column["pictures"].append(data_url(strip))
    return list(columns.values())
