"""The report of a training: its curves, samples over time, latest metrics, settings and command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.data.selection import even_indices
from ldm.reports.history import Best, Entries, History, RunRecord, is_number, numbers_of, read_history, rows_of
from ldm.reports.page import data_url, render_template
from ldm.reports.plots import Line, Mark, lines
from ldm.runtime.files import read_json

_MAX_PREVIEWS = 24  # of a run, spread over it
_MAX_CURVES = 4  # steps in one plot
_NOT_LOSSES = ("learning_rate", "gradient_norm", "images_per_second")
_QUARTERS = "validation_loss_by_noise_quarter"
_BY_NOISE = {"accuracy_by_noise": "accuracy", "validation_loss_by_noise": "loss"}


def render_run(run: str | Path) -> str:
    """The page of a run folder, finished or not."""
    root, history = Path(run), read_history(run)
    content = read_json(root / "run.json", RunRecord)
    config = root / "config.yaml"
    return render_template(
        "run.html.j2",
        name=f"{content['kind']}: {root.resolve().name}",
        sentence=_sentence(history),
        metrics=_latest(history),
        evaluations=_table(history),
        best=history.best,
        plots=_plots(history),
        previews=[{"label": str(int(path.stem.split("-")[1])), "url": data_url(path)} for path in _previews(root)],
        commands=content.get("commands", []),
        settings=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )


def _sentence(history: History) -> str:
    if not history.steps:
        return "Nothing was logged step by step." if history.validations else "Nothing was logged yet."
    last, best = history.steps[-1], history.best
    text = f"Step {last['step']}: loss {_format(last.get('loss'))}."
    if metrics := _latest(history):
        values = ", ".join(f"{name} {value}" for name, value in metrics.items())
        text += f" On held-out data at step {history.last['step']}: {values}."
    text += f" Best by {best.metric}: {best.value:.4g} at step {best.step}." if best else ""
    return text + "".join(f" Warning: {note}." for note in history.notes)


def _latest(history: History) -> dict[str, str]:
    """The newest metrics on held-out data, as text."""
    return {name: _format(value) for name, value in history.last.items() if name != "step" and is_number(value)}


def _table(history: History) -> dict[str, Any]:
    """The metrics of samples: a row a step."""
    names, rows = numbers_of(history.evaluations), []
    for entry in history.evaluations:
        rows.append({"step": entry["step"], "cells": [_format(entry.get(name)) for name in names]})
    return {"heads": names, "rows": rows}


def _plots(history: History) -> list[dict[str, str]]:
    loss = _line(history.steps, "loss")
    plots = _plot("loss", [loss], logarithmic=all(value > 0 for value in loss.y))
    for name in numbers_of(history.steps):
        if name != "loss" and name not in _NOT_LOSSES:
            plots += _plot(name, [_line(history.steps, name)])
    for name in _NOT_LOSSES:
        plots += _plot(name.replace("_", " "), [_line(history.steps, name)])
    for name in numbers_of(history.evaluations):
        plots += _plot(f"{name} (samples)", [_line(history.evaluations, name)], mark=_mark(history.best, name))
    for name in numbers_of(history.validations) if len(history.validations) > 1 else ():
        plots += _plot(f"{name} (held out)", [_line(history.validations, name)], mark=_mark(history.best, name))
    for name, column in _BY_NOISE.items():
        plots += _plot_by_noise(history.validations, name, column)
    entries = [entry for entry in history.validations if isinstance(entry.get(_QUARTERS), list)]
    count = max((len(entry[_QUARTERS]) for entry in entries), default=0)
    quarters = [_quarter_line(entries, index) for index in range(count)]
    return plots + _plot("loss by noise level (held out)", quarters)


def _plot(
    caption: str, curves: Sequence[Line], *, logarithmic: bool = False, mark: Mark | None = None
) -> list[dict[str, str]]:
    """Curves over steps; [] where none has points."""
    curves = [line for line in curves if line.x]
    svg = lines(curves, "step", caption, logarithmic=logarithmic, mark=mark) if curves else ""
    return [{"svg": svg, "caption": caption}] if curves else []


def _plot_by_noise(entries: Entries, name: str, column: str) -> list[dict[str, str]]:
    """The newest table by noise level, with some of those before it."""
    tables = [(entry["step"], rows) for entry in entries if (rows := rows_of(entry, name, column))]
    curves = []
    for index in even_indices(len(tables), _MAX_CURVES):
        step, rows = tables[index]
        curves.append(Line(f"step {step}", *zip(*rows, strict=True)))
    if not curves:
        return []
    return [{"svg": lines(curves, "time t", column), "caption": f"{column} by noise level (held out)"}]


def _quarter_line(entries: Entries, index: int) -> Line:
    """The loss in one quarter of the noise levels."""
    name = f"quarter {index + 1} of the noise"
    losses = [(entry["step"], entry[_QUARTERS][index]) for entry in entries if index < len(entry[_QUARTERS])]
    return _line([{"step": step, name: loss} for step, loss in losses], name)


def _line(entries: Entries, name: str) -> Line:
    pairs = [(float(entry["step"]), float(entry[name])) for entry in entries if is_number(entry.get(name))]
    return Line(name, [x for x, _ in pairs], [y for _, y in pairs])


def _mark(best: Best | None, name: str) -> Mark | None:
    return Mark(f"best: step {best.step}", best.step, best.value) if best and best.metric == name else None


def _format(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _previews(root: Path) -> list[Path]:
    """Some of the previews, from the first to the last."""
    paths = sorted((root / "samples").glob("step-[0-9]*.png"))
    return [paths[index] for index in even_indices(len(paths), _MAX_PREVIEWS)]
