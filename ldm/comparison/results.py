"""Figures of several evaluations side by side, where they were measured alike: by their manifests, not by trust."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.comparison.records import shown
from ldm.comparison.text import aligned, csv_of
from ldm.evaluation.records import EvaluationResult
from ldm.runtime.errors import UserError
from ldm.runtime.files import read_json
from ldm.runtime.text import printable

# What is asked about, or does not bear on the figures; all else in a manifest must be the same.
_ASKED = ("sampling", "model", "weights", "metrics", "rows", "rounds", "fake", "sizes", "caveats", "floor")
_OF_SOME = ("likelihood", "memorisation", "calibration")  # tell of figures that not all files have


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: the name of its file (and of the cell in it) and what was measured."""

    name: str
    result: EvaluationResult


@dataclass(frozen=True, slots=True)
class Results:
    """Rows of figures, and for each the keys of its manifest that differ from the first's: empty where they compare."""

    entries: tuple[Entry, ...]
    differing: tuple[tuple[str, ...], ...]

    def table(self) -> str:
        """Text: a row an entry, marked with what it was measured otherwise in, and these facts below."""
        names, marked = self._names(), any(self.differing)
        lines = [["figures of", *names, *(["measured otherwise"] if marked else [])]]
        for entry, keys in zip(self.entries, self.differing, strict=True):
            found = {figure.name: shown(figure) for figure in entry.result.figures}
            mark = [f"* {', '.join(keys)}" if keys else ""] if marked else []
            lines.append([entry.name, *(found.get(name, "-") for name in names), *mark])
        notes = []
        if marked:
            notes.append("* not comparable with the first row:")
            notes += [f"  {text}" for text in dict.fromkeys(self._differences())]
        return "\n".join([aligned(lines), *notes])

    def csv(self) -> str:
        """A line an entry: every figure with its standard error, and the keys that differ."""
        names = self._names()
        columns = [column for name in names for column in (name, f"{name} standard error")]
        lines: list[list[Any]] = [["figures of", *columns, "measured otherwise"]]
        for entry, keys in zip(self.entries, self.differing, strict=True):
            found = {figure.name: (figure.value, figure.standard_error) for figure in entry.result.figures}
            values = [value for name in names for value in found.get(name, (None, None))]
            lines.append([entry.name, *values, " ".join(keys)])
        return csv_of(lines)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(figure.name for entry in self.entries for figure in entry.result.figures))

    def _differences(self) -> list[str]:
        first = self.entries[0].result.manifest
        return [
            f"{key} {_plain(entry.result.manifest.get(key))}, the first's {_plain(first.get(key))}"
            for entry, keys in zip(self.entries, self.differing, strict=True)
            for key in keys
        ]


def gather_results(files: Sequence[str | Path], *, allow_different: bool = False) -> Results:
    """The figures in files of `ldm evaluate --output`, comparison.json and autoencoders.json (or folders of these).

    `UserError` for a file that is none of them, and, unless `allow_different`, for figures that were not measured alike
    (number of images, features, preprocessing, reference, conditions, seed, ...): it names what differs.
    """
    entries = [entry for file in files for entry in read_results(file)]
    if not entries:
        raise UserError("no figures: give files of `ldm evaluate --output` or `ldm compare`")
    differing = tuple(_differing(entries[0].result.manifest, entry.result.manifest) for entry in entries)
    found = Results(tuple(entries), differing)
    if any(differing) and not allow_different:
        place = next(place for place, keys in enumerate(differing) if keys)
        facts = "; ".join(dict.fromkeys(found._differences()))
        raise UserError(
            f"{entries[place].name}: not measured as {entries[0].name}: {facts}",
            remedy="such figures do not compare, `allow_different` shows them all the same",
        )
    return found


def read_results(file: str | Path) -> list[Entry]:
    """What one file holds: one result, or that of each cell or run."""
    path = Path(file)
    if path.is_dir():
        inside = [path / name for name in ("comparison.json", "autoencoders.json") if (path / name).is_file()]
        if not inside:
            raise UserError(f"{printable(path)}: holds neither comparison.json nor autoencoders.json")
        path = inside[0]
    value = read_json(path)
    try:
        if "cells" in value or "runs" in value:
            parts = [
                (each.get("label", each.get("name")), each["result"]) for each in value.get("cells", value.get("runs"))
            ]
            return [Entry(printable(f"{file}: {name}"), _result(result)) for name, result in parts]
        return [Entry(printable(file), _result(value))]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{printable(path)}: not the figures of `ldm evaluate --output` or `ldm compare`") from None


def _result(value: Mapping[str, Any]) -> EvaluationResult:
    result = EvaluationResult.from_json(value)
    for figure in result.figures:
        shown(figure)  # numbers are numbers
    if not isinstance(result.manifest, dict):
        raise TypeError("a manifest is a mapping")
    return result


def _differing(first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    keys = sorted((first.keys() | other.keys()) - set(_ASKED))
    keys = [key for key in keys if key not in _OF_SOME or (key in first and key in other)]
    return tuple(key for key in keys if first.get(key) != other.get(key))


def _plain(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 40)
