"""The history of a training in its run folder: the logged steps and the metrics over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ldm.runtime.errors import UserError
from ldm.runtime.files import log_entries, read_json

_LIMIT = 2**28  # bytes of metrics.jsonl
Entries = Sequence[Mapping[str, Any]]  # each with its "step"


class RunRecord(TypedDict):
    """The contents of run.json."""

    kind: str  # of the training
    facts: dict[str, Any]  # what a resumed run must share
    commands: NotRequired[list[str]]


class BestRecord(TypedDict):
    """The contents of best.json."""

    measure: str
    value: float | None  # null for one that was not finite
    step: int
    higher_is_better: NotRequired[bool]
    facts: NotRequired[dict[str, Any] | None]


@dataclass(frozen=True)
class Best:
    """The metric that selected the model in best/, its value there, and the step."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True)
class History:
    """The content of metrics.jsonl: the logged steps, the metrics on held-out data, and those of samples."""

    steps: Entries
    validations: Entries
    evaluations: Entries = ()
    best: Best | None = None

    @property
    def last(self) -> Mapping[str, Any]:
        """The newest metrics on held-out data; {} before the first."""
        return self.validations[-1] if self.validations else {}

    @property
    def notes(self) -> list[str]:
        """Warnings about the newest metrics, such as of a collapsed codebook."""
        notes = self.last.get("notes")
        return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def read_history(run: str | Path) -> History:
    """The history of a run folder; `UserError` for a folder that is not one, or that has logged nothing.

    A line that a killed training left incomplete is skipped.
    """
    root = Path(run)
    if not (root / "run.json").is_file():
        raise UserError(f"{run}: not a run folder (no run.json)", remedy="give the output folder of `ldm train`")
    file = root / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: no such file", remedy="the training has logged nothing yet")
    if file.stat().st_size > _LIMIT:
        raise UserError(f"{file}: larger than {_LIMIT} bytes")
    entries: dict[str, list[Mapping[str, Any]]] = {"steps": [], "validation": [], "evaluation": []}
    for entry in log_entries(file):
        kind = next((name for name in ("validation", "evaluation") if isinstance(entry.get(name), dict)), None)
        if kind is None:
            entries["steps"].append(entry)
        else:
            entries[kind].append({**entry[kind], "step": entry["step"]})
    if file.stat().st_size and not any(entries.values()):
        raise UserError(f"{file}: no line of it is one of a log")
    return History(entries["steps"], entries["validation"], entries["evaluation"], _best(root))


def numbers_of(entries: Entries) -> list[str]:
    """The names of all numbers, in the order of their first occurrence."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    return [name for name in names if name != "step" and any(is_number(entry.get(name)) for entry in entries)]


def rows_of(entry: Mapping[str, Any], name: str, value: str) -> list[tuple[float, float]]:
    """The pairs (t, value) of a table by noise level."""
    table = entry.get(name)
    rows = [row for row in table if isinstance(row, dict)] if isinstance(table, list) else []
    return [(row["t"], row[value]) for row in rows if is_number(row.get("t")) and is_number(row.get(value))]


def is_number(value: object) -> bool:
    """Whether a value can be plotted."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _best(root: Path) -> Best | None:
    file = root / "best" / "best.json"
    if not file.is_file():
        return None
    content = read_json(file, BestRecord)
    return None if content["value"] is None else Best(content["measure"], content["value"], content["step"])
