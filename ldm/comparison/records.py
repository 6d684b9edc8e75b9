"""The result of a comparison: one record a run, a table, JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NotRequired, TypedDict

from ldm.comparison.tables import align_columns, format_value
from ldm.evaluation.baseline import RealBaseline, StoredBaseline, baseline_line
from ldm.evaluation.records import EvaluationResult, StoredResult
from ldm.runtime.errors import UnknownNameError, UserError
from ldm.runtime.schema import convert
from samplers.level import short_repr


class _StoredRun(TypedDict):
    label: str
    method: str
    guidance_scale: float | None
    classifier_scale: float | None
    sampler: str
    steps: int
    peak_memory: int | None
    result: StoredResult
    difference: NotRequired[float | None]


class _StoredRound(TypedDict):
    num_images: int
    cells: tuple[_StoredRun, ...]
    left: tuple[str, ...]


class _StoredComparison(TypedDict):
    cells: tuple[_StoredRun, ...]
    left_out: dict[str, str]
    manifest: dict[str, Any]
    warnings: tuple[str, ...]
    rounds: NotRequired[tuple[_StoredRound, ...]]
    floor: NotRequired[StoredBaseline]


@dataclass(frozen=True, slots=True)
class Run:
    """One method at one scale, under one sampler: its metric values, their manifest and their cost."""

    label: str
    method: str
    guidance_scale: float | None
    classifier_scale: float | None
    sampler: str
    steps: int
    peak_memory: int | None
    """Largest number of bytes in use while sampling and measuring, beyond the loaded model; None if unknown."""
    result: EvaluationResult
    difference: float | None = None
    """Mean difference of its first samples from those of "none", in steps of 8 bits; None if there is no such run."""

    @property
    def as_none(self) -> bool:
        """Whether its samples differ from those without guidance by less than rounding."""
        return self.difference is not None and self.difference < 0.5

    __repr__ = short_repr

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return {**asdict(self), "result": self.result.to_json()}

    @classmethod
    def from_json(cls, value: object) -> Run:
        """The inverse of `to_json`; `ValueError` names the place of what it did not give."""
        stored: dict[str, Any] = dict(convert(value, _StoredRun))
        return cls(**{**stored, "result": EvaluationResult.from_json(stored["result"])})

    def row(self) -> dict[str, Any]:
        """Settings, every metric value with its error and interval, and the cost."""
        names = ("label", "method", "guidance_scale", "classifier_scale", "sampler", "steps")
        row = {name: getattr(self, name) for name in names}
        for value in self.result.figures:
            low, high = value.interval or (None, None)
            row |= {value.metric: value.value, f"{value.metric}_standard_error": value.standard_error}
            row |= {f"{value.metric}_low": low, f"{value.metric}_high": high}
        row |= {"evaluations_per_image": self.result.evaluations_per_image}
        return row | {"seconds_per_image": self.result.seconds_per_image, "peak_memory_bytes": self.peak_memory}


@dataclass(frozen=True, slots=True)
class Round:
    """A round of successive halving before the last: fewer samples, whose values compare among themselves only."""

    num_images: int
    runs: tuple[Run, ...]
    eliminated: tuple[str, ...]  # labels of the runs that did not go on

    __repr__ = short_repr

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        runs = [run.to_json() for run in self.runs]
        return {"num_images": self.num_images, "left": list(self.eliminated), "cells": runs}

    @classmethod
    def from_json(cls, value: object) -> Round:
        """The inverse of `to_json`; `ValueError` names the place of what it did not give."""
        stored = convert(value, _StoredRound)
        return cls(stored["num_images"], tuple(map(Run.from_json, stored["cells"])), stored["left"])


@dataclass(frozen=True, slots=True)
class Comparison:
    """All runs on the same seeds and conditions, and the methods that the model does not support.

    With successive halving `runs` are those of the last round, and `rounds` are the ones before.
    """

    runs: tuple[Run, ...]
    left_out: Mapping[str, str]  # method -> reason
    manifest: Mapping[str, Any]  # what all runs share
    warnings: tuple[str, ...] = ()
    rounds: tuple[Round, ...] = ()
    baseline: RealBaseline = field(default_factory=RealBaseline)  # values of real images that are not the reference

    __repr__ = short_repr

    @property
    def initial_runs(self) -> tuple[Run, ...]:
        """The runs of the first round."""
        return self.rounds[0].runs if self.rounds else self.runs

    @property
    def has_peak_memory(self) -> bool:
        """Whether the peak memory of any run is known, as on CUDA."""
        return any(run.peak_memory is not None for run in self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, key: int | str) -> Run:
        """A run by its index or by its label."""
        if isinstance(key, int):
            return self.runs[key]
        for run in self.runs:
            if run.label == key:
                return run
        raise UnknownNameError(f"{key}; compared: {', '.join(run.label for run in self.runs)}")

    def __str__(self) -> str:
        return self.table()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return {
            "manifest": dict(self.manifest),
            "warnings": list(self.warnings),
            "left_out": dict(self.left_out),
            "floor": self.baseline.to_json(),
            "cells": [run.to_json() for run in self.runs],
            "rounds": [round_.to_json() for round_ in self.rounds],
        }

    @classmethod
    def from_json(cls, value: object) -> Comparison:
        """The inverse of `to_json`; `ValueError` names the place of what it did not give."""
        stored = convert(value, _StoredComparison)
        runs = tuple(map(Run.from_json, stored["cells"]))
        rounds = tuple(map(Round.from_json, stored.get("rounds", ())))
        baseline = RealBaseline.from_json(stored["floor"]) if "floor" in stored else RealBaseline()
        return cls(runs, stored["left_out"], stored["manifest"], stored["warnings"], rounds, baseline)

    def rows(self) -> list[dict[str, Any]]:
        """`Run.row` of every run; all have the same keys."""
        return [run.row() for run in self.runs]

    def to_pandas(self) -> Any:
        """`rows` as a pandas DataFrame; `UserError` where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas: pandas is not installed", remedy="install it, or take .rows()") from None
        return pandas.DataFrame(self.rows())

    def table(self, width: int | None = None) -> str:
        """Text: a row a run, a column a metric (lower distances and higher accuracies are better), and the cost.

        `width` is that of the terminal, if it is limited.
        """
        values = self.runs[0].result.figures
        has_peak = self.has_peak_memory
        peak_head = ["peak MB"] if has_peak else []
        lines = [["method", *[value.name for value in values], "evaluations/image", "seconds/image", *peak_head]]
        for run in self.runs:
            cost = f"{run.result.evaluations_per_image:g}", f"{run.result.seconds_per_image:.3g}"
            peak = [peak_text(run.peak_memory)] if has_peak else []
            label = f"{run.label} =none" if run.as_none else run.label
            lines.append([label, *map(format_value, run.result.figures), *cost, *peak])
        if not self.baseline.provenance:
            return align_columns(lines, width)
        real = {value.metric: format_value(value) for value in self.baseline.figures}
        lines.append(["real images", *[real.get(value.metric, "-") for value in values], "-", "-", *["-"] * has_peak])
        return f"{align_columns(lines, width)}\n{baseline_line(self.baseline.provenance)}"


def peak_text(peak_memory: int | None) -> str:
    """Bytes as MB; "-" where they are unknown."""
    return "-" if peak_memory is None else f"{peak_memory / 1e6:.0f}"
