"""The report of a training: its curves, its pictures over time, its last measures, its settings and its command."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ldm.data.selection import even_indices
from ldm.reports.history import Best, Entries, History, is_number, numbers_of, read_history, rows_of
from ldm.reports.page import data_url, fill
from ldm.reports.plots import Line, Mark, lines
from ldm.runtime.files import read_json

_PICTURES = 24  # at most so many of a run, spread over it
_CURVES = 4  # at most so many steps in one plot
_APART = ("learning_rate", "gradient_norm", "images_per_second")  # a plot each
_QUARTERS = "validation_loss_by_noise_quarter"
_BY_NOISE = {"accuracy_by_noise": "accuracy", "validation_loss_by_noise": "loss"}


def render_run(run: str | Path) -> str:
    """The page of a run folder, finished or not."""
    root, history = Path(run), read_history(run)
    about = read_json(root / "run.json")
    kind, commands = (about.get("kind", "?"), about.get("commands")) if isinstance(about, dict) else ("?", None)
    settings = root / "config.yaml"
    return fill(
        "run.html.j2",
        name=f"{kind}: {root.resolve().name}",
        sentence=_sentence(history),
        measures={name: _shown(value) for name, value in history.last.items() if name != "step" and is_number(value)},
        evaluations=_table(history),
        best=history.best,
        plots=_plots(history),
        pictures=[{"label": str(int(path.stem.split("-")[1])), "url": data_url(path)} for path in _pictures(root)],
        commands=[str(each) for each in commands] if isinstance(commands, list) else [],
        settings=settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else "",
    )


def _sentence(history: History) -> str:
    if not history.steps:
        return "Nothing was logged step by step." if history.validations else "Nothing was logged yet."
    last, best = history.steps[-1], history.best
    figures = {name: value for name, value in history.last.items() if name != "step" and is_number(value)}
    text = f"Step {last['step']}: loss {_shown(last.get('loss'))}."
    if figures:
        told = ", ".join(f"{name} {_shown(value)}" for name, value in figures.items())
        text += f" On held-out data at step {history.last['step']}: {told}."
    return text + (f" Best by {best.measure}: {best.value:.4g} at step {best.step}." if best else "")


def _table(history: History) -> dict[str, Any]:
    """The figures of samples: a row a step, and which row is the best."""
    names = numbers_of(history.evaluations)
    return {
        "heads": names,
        "rows": [
            {"step": entry["step"], "cells": [_shown(entry.get(name)) for name in names]}
            for entry in history.evaluations
        ],
    }


def _plots(history: History) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []

    def add(caption: str, given: Iterable[Line], logarithmic: bool = False, mark: Mark | None = None) -> None:
        drawn = [line for line in given if line.x]
        if drawn:
            found.append({"svg": lines(drawn, "step", caption, logarithmic=logarithmic, mark=mark), "caption": caption})

    logged = numbers_of(history.steps)
    losses = [name for name in logged if name not in _APART]
    add("loss", [_line(history.steps, "loss")], logarithmic=_positive(history.steps, "loss"))
    for name in losses:
        if name != "loss":
            add(name, [_line(history.steps, name)])
    for name in _APART:
        add(name.replace("_", " "), [_line(history.steps, name)])
    for name in numbers_of(history.evaluations):
        add(f"{name} (samples)", [_line(history.evaluations, name)], mark=_mark(history.best, name))
    for name in numbers_of(history.validations) if len(history.validations) > 1 else ():
        add(f"{name} (held out)", [_line(history.validations, name)], mark=_mark(history.best, name))
    for name, value in _BY_NOISE.items():
        found += _by_noise(history.validations, name, value)
    quarters = [len(entry[_QUARTERS]) for entry in history.validations if isinstance(entry.get(_QUARTERS), list)]
    add(
        "loss by noise level (held out)",
        [
            Line(f"quarter {place + 1} of the noise", *_part(history, place))
            for place in range(max(quarters, default=0))
        ],
    )
    return found


def _by_noise(entries: Entries, name: str, value: str) -> list[dict[str, str]]:
    """The newest table by noise level, with some of those before it."""
    told, curves = [entry for entry in entries if rows_of(entry, name, value)], []
    for place in even_indices(len(told), _CURVES):
        x, y = zip(*rows_of(told[place], name, value), strict=True)
        curves.append(Line(f"step {told[place]['step']}", x, y))
    if not curves:
        return []
    return [{"svg": lines(curves, "time t", value), "caption": f"{value} by noise level (held out)"}]


def _part(history: History, place: int) -> tuple[list[float], list[float]]:
    found = [(entry["step"], entry[_QUARTERS]) for entry in history.validations if _QUARTERS in entry]
    pairs = [(step, values[place]) for step, values in found if isinstance(values, list) and place < len(values)]
    return [float(x) for x, y in pairs if is_number(y)], [float(y) for _, y in pairs if is_number(y)]


def _line(entries: Entries, name: str) -> Line:
    pairs = [(float(entry["step"]), float(entry[name])) for entry in entries if is_number(entry.get(name))]
    return Line(name, [x for x, _ in pairs], [y for _, y in pairs])


def _mark(best: Best | None, name: str) -> Mark | None:
    return Mark(f"best: step {best.step}", best.step, best.value) if best and best.measure == name else None


def _positive(entries: Iterable[Mapping[str, Any]], name: str) -> bool:
    return all(entry[name] > 0 for entry in entries if is_number(entry.get(name)))


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _pictures(root: Path) -> list[Path]:
    """Some of the previews, from the first to the last."""
    found = sorted((root / "samples").glob("step-[0-9]*.png"))
    return [found[place] for place in even_indices(len(found), _PICTURES)]
