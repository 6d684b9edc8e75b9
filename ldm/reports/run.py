"""The report of a training: its curves, its pictures over time, its last measures and its settings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.files import read_json
from ldm.reports.page import data_url, fill
from ldm.reports.plots import Line, lines

_PICTURES = 24  # at most so many of a run, spread over it
_APART = ("learning_rate", "gradient_norm", "images_per_second")  # a plot each
_LIMIT = 2**28  # bytes of metrics.jsonl


@dataclass(frozen=True)
class History:
    """What metrics.jsonl says: the logged steps, and the measures on held-out data."""

    steps: tuple[Mapping[str, Any], ...]
    validations: tuple[Mapping[str, Any], ...]  # each with its "step"

    @property
    def last(self) -> Mapping[str, Any]:
        """The newest measures; {} before the first."""
        return self.validations[-1] if self.validations else {}


def read_history(run: str | Path) -> History:
    """The history of a run folder; `UserError` for a folder that is not one, or whose metrics cannot be read."""
    root = Path(run)
    if not (root / "run.json").is_file():
        raise UserError(f"{run}: not a run folder (no run.json); give the output folder of `ldm train`")
    file = root / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: no such file; the training has logged nothing yet")
    if file.stat().st_size > _LIMIT:
        raise UserError(f"{file}: larger than {_LIMIT} bytes")
    steps, validations = [], []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(text)
            step = int(entry["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{file}: line {number} is not one of a log") from None
        if isinstance(entry.get("validation"), dict):
            validations.append({"step": step, **entry["validation"]})
        else:
            steps.append(entry)
    return History(tuple(steps), tuple(validations))


def render_run(run: str | Path) -> str:
    """The page of a run folder, finished or not."""
    root, history = Path(run), read_history(run)
    kind = str(read_json(root / "run.json").get("kind", "?"))
    settings = root / "config.yaml"
    return fill(
        "run.html.j2",
        name=f"{kind}: {root.resolve().name}",
        sentence=_sentence(history),
        measures={name: _shown(value) for name, value in history.last.items() if name != "step" and _finite(value)},
        plots=_plots(history),
        pictures=[{"label": str(int(path.stem.split("-")[1])), "url": data_url(path)} for path in _pictures(root)],
        settings=settings.read_text(encoding="utf-8") if settings.is_file() else "",
    )


def _sentence(history: History) -> str:
    if not history.steps:
        return "Nothing was logged step by step." if history.validations else "Nothing was logged yet."
    last = history.steps[-1]
    figures = {name: value for name, value in history.last.items() if name != "step" and _finite(value)}
    text = f"Step {last['step']}: loss {_shown(last.get('loss'))}"
    told = ", ".join(f"{name} {_shown(value)}" for name, value in figures.items())
    return f"{text}. On held-out data at step {history.last['step']}: {told}." if told else f"{text}."


def _plots(history: History) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []

    def add(caption: str, given: Iterable[Line], logarithmic: bool = False) -> None:
        drawn = [line for line in given if line.x]
        if drawn:
            found.append({"svg": lines(drawn, "step", caption, logarithmic=logarithmic), "caption": caption})

    logged = _names(history.steps)
    losses = [name for name in logged if name not in _APART]
    add("loss", [_line(history.steps, "loss")], logarithmic=_positive(history.steps, "loss"))
    for name in losses:
        if name != "loss":
            add(name, [_line(history.steps, name)])
    for name in _APART:
        add(name.replace("_", " "), [_line(history.steps, name)])
    for name in _names(history.validations) if len(history.validations) > 1 else ():
        add(f"{name} (held out)", [_line(history.validations, name)])
    if isinstance(table := history.last.get("accuracy_by_noise"), list):
        found.append(_by_noise(table))
    if isinstance(quarters := history.last.get("validation_loss_by_noise_quarter"), list):
        given = [
            Line(f"quarter {place + 1} of the noise", *_columns(history.validations, place))
            for place in range(len(quarters))
        ]
        add("loss by noise level (held out)", given)
    return found


def _by_noise(table: list[Any]) -> dict[str, str]:
    x, y = [float(row["t"]) for row in table], [float(row["accuracy"]) for row in table]
    caption = "accuracy by noise level (held out, last measure)"
    return {"svg": lines([Line("accuracy", x, y)], "time t", "accuracy"), "caption": caption}


def _columns(entries: Iterable[Mapping[str, Any]], place: int) -> tuple[list[float], list[float]]:
    pairs = [
        (entry["step"], entry["validation_loss_by_noise_quarter"][place])
        for entry in entries
        if len(entry.get("validation_loss_by_noise_quarter", ())) > place
    ]
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def _names(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all numbers, in the order of their coming."""
    return [
        name
        for name in dict.fromkeys(name for entry in entries for name in entry)
        if name != "step" and any(_finite(entry.get(name)) for entry in entries)
    ]


def _line(entries: Iterable[Mapping[str, Any]], name: str) -> Line:
    pairs = [(float(entry["step"]), float(entry[name])) for entry in entries if _finite(entry.get(name))]
    return Line(name, [x for x, _ in pairs], [y for _, y in pairs])


def _positive(entries: Iterable[Mapping[str, Any]], name: str) -> bool:
    return all(entry[name] > 0 for entry in entries if _finite(entry.get(name)))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _pictures(root: Path) -> list[Path]:
    """At most 24 of the previews, from the first to the last."""
    found = sorted((root / "samples").glob("step-[0-9]*.png"))
    if len(found) <= _PICTURES:
        return found
    return [found[round(place * (len(found) - 1) / (_PICTURES - 1))] for place in range(_PICTURES)]
