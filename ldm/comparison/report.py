"""The report of a comparison: one self-contained HTML file, for the screen, the phone and the keyboard."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.comparison.ranking import Ranking, pareto_front
from ldm.comparison.records import Comparison, Round, Run, peak_text
from ldm.comparison.tables import is_accuracy, to_csv
from ldm.evaluation.baseline import baseline_line
from ldm.evaluation.records import MetricValue
from ldm.reports.page import data_url, render_template
from ldm.reports.plots import Point, Scatter

_COST_HEADS = ("evaluations/image", "seconds/image")


@dataclass(frozen=True, slots=True)
class TableCell:
    """One cell of an HTML table: the value to sort by, its text, an interval or error in small print, and whether it is
    the best of its column."""

    value: str
    text: str
    note: str = ""
    best: bool = False


_EMPTY = TableCell("", "-")


@dataclass(frozen=True, slots=True)
class TradeOff:
    """A plot of the report: the name of its file, its caption, and its points."""

    name: str
    caption: str
    scatter: Scatter


def write_csv(comparison: Comparison) -> str:
    """One line a run: label, method, scales, sampler, steps, every metric with error and interval, and the cost."""
    rows = comparison.rows()
    return to_csv([list(rows[0]), *(list(row.values()) for row in rows)])


def render(
    comparison: Comparison,
    ranking: Ranking,
    sample_rows: Sequence[Path],
    *,
    conditions: Sequence[str] = (),
    command: str = "",
    model: str = "this model",
) -> str:
    """The page; `sample_rows` are the images of the first round's runs, `conditions` those of the samples on them."""
    runs, baseline = comparison.runs, comparison.baseline
    return render_template(
        "comparison.html.j2",
        model=model,
        ranking=ranking,
        manifest=dict(comparison.manifest),
        warnings=comparison.warnings,
        heads=["method", *map(_short_name, runs[0].result.figures), *_cost_heads(comparison)],
        rows=[
            {"winner": run == ranking.best, "columns": columns}
            for run, columns in zip(runs, _columns(comparison), strict=True)
        ],
        baseline=_baseline_columns(comparison),
        baseline_line=baseline_line(baseline.provenance) if baseline.provenance else "",
        left_out=comparison.left_out,
        rounds=[_round(round_, ranking.metric) for round_ in comparison.rounds],
        plots=[{"svg": plot.scatter.svg(), "caption": plot.caption} for plot in trade_offs(runs, ranking)],
        sample_columns=_sample_columns(comparison.initial_runs, sample_rows),
        conditions=[text for text in conditions if text],
        num_rows=comparison.manifest["rows"],
        command=command,
        manifest_text=json.dumps(comparison.to_json()["manifest"], indent=1, ensure_ascii=False),
    )


def _cost_heads(comparison: Comparison) -> tuple[str, ...]:
    return (*_COST_HEADS, "peak MB") if comparison.has_peak_memory else _COST_HEADS


def _columns(comparison: Comparison) -> list[list[TableCell]]:
    """The cells of each run; of several runs the best of each column is marked."""
    rows: list[list[TableCell]] = []
    losses: list[list[float]] = []  # of all columns but the first: lower is better
    for run in comparison.runs:
        cost = run.result.evaluations_per_image, run.result.seconds_per_image
        row = [*map(_value_cell, run.result.figures), *(TableCell(repr(value), f"{value:.3g}") for value in cost)]
        if comparison.has_peak_memory:
            peak = "" if run.peak_memory is None else repr(run.peak_memory)
            row.append(TableCell(peak, peak_text(run.peak_memory)))
            cost = (*cost, math.inf if run.peak_memory is None else run.peak_memory)  # type: ignore[assignment]
        rows.append(row)
        losses.append([*(value.loss() for value in run.result.figures), *cost])
    best = [min(column) for column in zip(*losses, strict=True)]
    return [
        [TableCell(run.label, run.label, "as none" if run.as_none else "")]
        + [
            replace(entry, best=len(rows) > 1 and loss == lowest < math.inf)
            for entry, loss, lowest in zip(row, own, best, strict=True)
        ]
        for run, row, own in zip(comparison.runs, rows, losses, strict=True)
    ]


def _baseline_columns(comparison: Comparison) -> list[TableCell]:
    """The values of real images; [] where they were not measured."""
    real = {value.metric: _value_cell(value) for value in comparison.baseline.figures}
    values = [real.get(value.metric, _EMPTY) for value in comparison.runs[0].result.figures]
    return [TableCell("", "real images"), *values, *[_EMPTY] * len(_cost_heads(comparison))] if real else []


def _round(round_: Round, metric: str) -> dict[str, Any]:
    rows = []
    for run in round_.runs:
        fate = "left" if run.label in round_.eliminated else "went on"
        rows.append([TableCell("", run.label), _value_cell(run.result[metric]), TableCell("", fate)])
    return {"num_images": round_.num_images, "rows": rows}


def _short_name(value: MetricValue) -> str:
    """The name without the extractor's, which the page states once."""
    return value.name if is_accuracy(value) else value.name.split("[")[0]


def _value_cell(value: MetricValue) -> TableCell:
    scale, digits, error_digits, unit = (100, ".1f", ".1f", " %") if is_accuracy(value) else (1, ".4g", ".2g", "")
    note = ""
    if value.interval is not None:
        low, high = value.interval
        note = f"[{low * scale:{digits}}, {high * scale:{digits}}]"
    elif value.standard_error is not None:
        note = f"± {value.standard_error * scale:{error_digits}}"
    return TableCell(repr(value.value), f"{value.value * scale:{digits}}{unit}", note)


def trade_offs(runs: Sequence[Run], ranking: Ranking) -> list[TradeOff]:
    """Quality against coverage of the data's variety, against the share of expected attributes, and against cost."""
    if not ranking.metric:
        return []
    quality, names = ranking.metric, {value.metric: _short_name(value) for value in runs[0].result.figures}
    variety = [name for name in ("recall", "diversity", "coverage") if name in names]
    accuracy = [name for name in names if name.startswith("accuracy/")]
    plots = []
    for other in [*variety[:1], *accuracy[:1], ""]:
        points = []
        for run in runs:
            x = run.result[other].value if other else run.result.evaluations_per_image
            points.append(Point(run.label, run.method, x, run.result[quality], run.label.partition(" | ")[2]))
        front = [run.label for run in pareto_front(runs, quality, other)]
        caption = f"{names[quality]} against {names[other] if other else 'cost'}. "
        caption += f"Pareto front: {', '.join(front)}."
        x_name = names[other] if other else "network evaluations an image"
        scatter = Scatter(points, x_name, names[quality], front)
        plots.append(TradeOff(f"quality-{other.split('/')[0] or 'cost'}", caption, scatter))
    return plots


def _sample_columns(runs: Sequence[Run], sample_rows: Sequence[Path]) -> list[dict[str, Any]]:
    """One column a method and sampler, with an image for each scale."""
    columns: dict[str, dict[str, Any]] = {}
    for run, sample_row in zip(runs, sample_rows, strict=True):
        name, _, solver = run.label.partition(" | ")
        key = run.method + (f" | {solver}" if solver else "")
        column = columns.setdefault(key, {"name": key, "labels": [], "images": []})
        column["labels"].append(name.removeprefix(run.method).strip() or "-")
        column["images"].append(data_url(sample_row))
    return list(columns.values())
