"""What a comparison found: one record a cell, a table, JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ldm.comparison.text import aligned
from ldm.evaluation.floor import Floor, told_floor
from ldm.evaluation.records import EvaluationResult, Figure, finite


@dataclass(frozen=True, slots=True)
class Cell:
    """One method at one scale, under one sampler: its figures, their manifest and their cost."""

    label: str
    method: str
    guidance_scale: float | None
    classifier_scale: float | None
    sampler: str
    steps: int
    peak_memory: int | None
    """Bytes that sampling and measuring took at most, above what the loaded model takes; None where it is not known."""
    result: EvaluationResult

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return {**asdict(self), "result": self.result.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cell:
        """What `to_json` gave."""
        return cls(**{**value, "result": EvaluationResult.from_json(value["result"])})


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells, on the same seeds and conditions, and the methods that the model cannot do."""

    cells: tuple[Cell, ...]
    left_out: Mapping[str, str]  # method -> why
    manifest: Mapping[str, Any]  # what all cells share
    warnings: tuple[str, ...] = ()
    floor: Floor = field(default_factory=Floor)  # the figures of real images that are not the reference

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return {
            "manifest": dict(self.manifest),
            "warnings": list(self.warnings),
            "left_out": dict(self.left_out),
            "floor": finite(asdict(self.floor)),
            "cells": [cell.to_json() for cell in self.cells],
        }

    def table(self) -> str:
        """Text: a row a cell, a column a figure (lower distances and higher accuracies are better), and the cost."""
        names = [figure.name for figure in self.cells[0].result.figures]
        head = ["method", *names, "evaluations/image", "seconds/image", "peak MB"]
        rows = [
            [
                cell.label,
                *[_shown(figure) for figure in cell.result.figures],
                f"{cell.result.evaluations_per_image:g}",
                f"{cell.result.seconds_per_image:.3g}",
                "-" if cell.peak_memory is None else f"{cell.peak_memory / 1e6:.0f}",
            ]
            for cell in self.cells
        ]
        if self.floor.facts:
            found = {figure.metric: figure for figure in self.floor.figures}
            measured = [figure.metric for figure in self.cells[0].result.figures]
            rows.append(["floor", *[_shown(found[name]) if name in found else "-" for name in measured], "-", "-", "-"])
            return f"{aligned([head, *rows])}\n{told_floor(self.floor.facts)}"
        return aligned([head, *rows])


def _shown(figure: Figure) -> str:
    """Value and standard error; shares in per cent."""
    share = figure.metric.startswith("accuracy/")
    value, error = (None if x is None else 100 * x if share else x for x in (figure.value, figure.standard_error))
    digits = ".1f" if share else ".4g"
    text = f"{value:{digits}}" + (" %" if share else "")
    return text if error is None else f"{text} ± {error:.1f}" if share else f"{text} ± {error:.1g}"
