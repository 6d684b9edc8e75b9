"""What a comparison found: one record a cell, a table, JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ldm.comparison.text import aligned
from ldm.evaluation.baseline import RealBaseline, baseline_line
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.runtime.errors import UserError


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
class Round:
    """A round of successive halving before the last: figures of fewer samples, comparable among themselves only."""

    num_images: int
    cells: tuple[Cell, ...]
    left: tuple[str, ...]  # labels of those that did not go on

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        cells = [cell.to_json() for cell in self.cells]
        return {"num_images": self.num_images, "left": list(self.left), "cells": cells}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Round:
        """What `to_json` gave."""
        return cls(value["num_images"], tuple(map(Cell.from_json, value["cells"])), tuple(value["left"]))


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells, on the same seeds and conditions, and the methods that the model cannot do: a table, a row a cell.

    With successive halving `cells` are those of the last round, and `rounds` tells of the ones before.
    """

    cells: tuple[Cell, ...]
    left_out: Mapping[str, str]  # method -> why
    manifest: Mapping[str, Any]  # what all cells share
    warnings: tuple[str, ...] = ()
    rounds: tuple[Round, ...] = ()
    floor: RealBaseline = field(default_factory=RealBaseline)  # the figures of real images that are not the reference

    @property
    def everyone(self) -> tuple[Cell, ...]:
        """The cells that it began with, with what they were first measured to be."""
        return self.rounds[0].cells if self.rounds else self.cells

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, place: int | str) -> Cell:
        """A cell by its place, or by its label."""
        if isinstance(place, int):
            return self.cells[place]
        found = [cell for cell in self.cells if cell.label == place]
        if not found:
            raise KeyError(f"{place}; compared: {', '.join(cell.label for cell in self.cells)}")
        return found[0]

    def __str__(self) -> str:
        return self.table()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return {
            "manifest": dict(self.manifest),
            "warnings": list(self.warnings),
            "left_out": dict(self.left_out),
            "floor": self.floor.to_json(),
            "cells": [cell.to_json() for cell in self.cells],
            "rounds": [each.to_json() for each in self.rounds],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Comparison:
        """What `to_json` gave."""
        cells = tuple(map(Cell.from_json, value["cells"]))
        rounds = tuple(map(Round.from_json, value.get("rounds", ())))
        floor = RealBaseline.from_json(value["floor"]) if "floor" in value else RealBaseline()
        return cls(cells, value["left_out"], value["manifest"], tuple(value["warnings"]), rounds, floor)

    def rows(self) -> list[dict[str, Any]]:
        """A mapping a cell with the same keys: what it is, every figure with error and interval, and the cost."""
        return [_flat(cell) for cell in self.cells]

    def to_pandas(self) -> Any:
        """`rows` as a pandas DataFrame; `UserError` where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas: pandas is not installed", remedy="install it, or take .rows()") from None
        return pandas.DataFrame(self.rows())

    def table(self) -> str:
        """Text: a row a cell, a column a figure (lower distances and higher accuracies are better), and the cost."""
        names = [figure.name for figure in self.cells[0].result.figures]
        head = ["method", *names, "evaluations/image", "seconds/image", "peak MB"]
        rows = [
            [
                cell.label,
                *[shown(figure) for figure in cell.result.figures],
                f"{cell.result.evaluations_per_image:g}",
                f"{cell.result.seconds_per_image:.3g}",
                "-" if cell.peak_memory is None else f"{cell.peak_memory / 1e6:.0f}",
            ]
            for cell in self.cells
        ]
        if self.floor.provenance:
            found = {figure.metric: figure for figure in self.floor.figures}
            measured = [figure.metric for figure in self.cells[0].result.figures]
            rows.append(["floor", *[shown(found[name]) if name in found else "-" for name in measured], "-", "-", "-"])
            return f"{aligned([head, *rows])}\n{baseline_line(self.floor.provenance)}"
        return aligned([head, *rows])


def _flat(cell: Cell) -> dict[str, Any]:
    names = ("label", "method", "guidance_scale", "classifier_scale", "sampler", "steps")
    row = {name: getattr(cell, name) for name in names}
    for figure in cell.result.figures:
        low, high = figure.interval or (None, None)
        row |= {figure.metric: figure.value, f"{figure.metric}_standard_error": figure.standard_error}
        row |= {f"{figure.metric}_low": low, f"{figure.metric}_high": high}
    row |= {"evaluations_per_image": cell.result.evaluations_per_image}
    return row | {"seconds_per_image": cell.result.seconds_per_image, "peak_memory_bytes": cell.peak_memory}


def shown(figure: MetricValue) -> str:
    """Value and standard error; shares in per cent."""
    share = figure.metric.startswith("accuracy/")
    value, error = (None if x is None else 100 * x if share else x for x in (figure.value, figure.standard_error))
    digits = ".1f" if share else ".4g"
    text = f"{value:{digits}}" + (" %" if share else "")
    return text if error is None else f"{text} ± {error:.1f}" if share else f"{text} ± {error:.1g}"
