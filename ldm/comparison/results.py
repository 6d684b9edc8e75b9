"""Results of several evaluations side by side, if their manifests show that they were measured alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ldm.comparison.tables import align_columns, format_value, to_csv
from ldm.evaluation.records import EvaluationResult
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import read_json
from ldm.runtime.schema import convert
from ldm.runtime.text import printable

# What may differ, for it is compared or does not affect the values; all else in a manifest must be the same.
_MAY_DIFFER = ("sampling", "model", "weights", "metrics", "rows", "rounds", "fake", "sizes", "caveats", "floor")
# Settings of metrics that not all files have, and what is not known of a folder of images.
_OPTIONAL = (
    *("likelihood", "memorisation", "calibration", "conditions", "resized"),
    *("judge", "judge_accuracy", "judge_held_out", "clip_score"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: the name of its file (and of the run in it) and its result."""

    name: str
    result: EvaluationResult


@dataclass(frozen=True, slots=True)
class Results:
    """Rows of results, and for each the keys of its manifest that differ from the first's: none where they compare."""

    entries: tuple[Entry, ...]
    differing: tuple[tuple[str, ...], ...]

    def table(self, width: int | None = None) -> str:
        """Text: a row an entry, marked with the keys that differ, and their values below, of at most this width."""
        names, any_differs = self._names(), any(self.differing)
        lines = [["figures of", *names, *(["measured otherwise"] if any_differs else [])]]
        for entry, keys in zip(self.entries, self.differing, strict=True):
            values = {value.name: format_value(value) for value in entry.result.figures}
            mark = [f"* {', '.join(keys)}" if keys else ""] if any_differs else []
            lines.append([entry.name, *(values.get(name, "-") for name in names), *mark])
        notes = []
        if any_differs:
            notes.append("* not comparable with the first row:")
            notes += [f"  {text}" for text in dict.fromkeys(self.differences())]
        return "\n".join([align_columns(lines, width), *notes])

    def csv(self) -> str:
        """A line an entry: every value with its standard error, and the keys that differ."""
        names = self._names()
        columns = [column for name in names for column in (name, f"{name} standard error")]
        lines: list[list[Any]] = [["figures of", *columns, "measured otherwise"]]
        for entry, keys in zip(self.entries, self.differing, strict=True):
            pairs = {value.name: (value.value, value.standard_error) for value in entry.result.figures}
            values = [number for name in names for number in pairs.get(name, (None, None))]
            lines.append([entry.name, *values, " ".join(keys)])
        return to_csv(lines)

    def differences(self) -> list[str]:
        """`num_images 500, the first's 1000` for each key that differs."""
        first = self.entries[0].result.manifest
        return [
            f"{key} {_plain(entry.result.manifest.get(key))}, the first's {_plain(first.get(key))}"
            for entry, keys in zip(self.entries, self.differing, strict=True)
            for key in keys
        ]

    def _names(self) -> list[str]:
        return list(dict.fromkeys(value.name for entry in self.entries for value in entry.result.figures))


def gather_results(files: Sequence[str | Path], *, allow_different: bool = False) -> Results:
    """The results in files of `ldm evaluate --output`, comparison.json and autoencoders.json (or folders of these).

    `UserError` for a file that is none of them, and, unless `allow_different`, for results that were not measured alike
    (number of images, features, preprocessing, reference, conditions, seed, ...): it names what differs.
    """
    entries = [entry for file in files for entry in read_results(file)]
    if not entries:
        raise UserError("no figures: give files of `ldm evaluate --output` or `ldm compare`")
    differing = tuple(_differing_keys(entries[0].result.manifest, entry.result.manifest) for entry in entries)
    results = Results(tuple(entries), differing)
    if any(differing) and not allow_different:
        name = next(entry.name for entry, keys in zip(entries, differing, strict=True) if keys)
        differences = "; ".join(dict.fromkeys(results.differences()))
        remedy = "such figures do not compare, `allow_different` shows them all the same"
        raise UserError(f"{name}: not measured as {entries[0].name}: {differences}", remedy=remedy)
    return results


def read_results(file: str | Path) -> list[Entry]:
    """One result, or those of all runs of a comparison."""
    path = Path(file)
    if path.is_dir():
        inside = [path / name for name in ("comparison.json", "autoencoders.json") if (path / name).is_file()]
        if not inside:
            raise UserError(f"{printable(path)}: holds neither comparison.json nor autoencoders.json")
        path = inside[0]
    stored = read_json(path, object)
    with user_errors(f"{printable(path)}: not the figures of `ldm evaluate --output` or `ldm compare`"):
        content = convert(stored, dict[str, Any])
        if "cells" not in content and "runs" not in content:
            return [Entry(printable(file), EvaluationResult.from_json(content))]
        rows = convert(content.get("cells", content.get("runs")), list[_Row])
        names = [str(row.get("label", row.get("name"))) for row in rows]
        results = [EvaluationResult.from_json(row["result"]) for row in rows]
    return [Entry(printable(f"{file}: {name}"), result) for name, result in zip(names, results, strict=True)]


class _Row(TypedDict):
    """A run of a comparison, of models (label) or of autoencoders (name)."""

    label: NotRequired[str]
    name: NotRequired[str]
    result: dict[str, Any]


def _differing_keys(first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    keys = sorted((first.keys() | other.keys()) - set(_MAY_DIFFER))
    keys = [key for key in keys if key not in _OPTIONAL or (key in first and key in other)]
    return tuple(key for key in keys if first.get(key) != other.get(key))


def _plain(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 40)
