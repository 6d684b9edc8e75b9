"""The result of an evaluation: figures with their names and errors, and the manifest that they hold for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NotRequired, TypedDict

from ldm.runtime.errors import UnknownNameError
from ldm.runtime.schema import convert, finite
from samplers.level import short_repr


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One number. `metric` is its kind (fid, kid, accuracy/shape); `name` is to be quoted, with what measured it
    (`FID`, `FD[trained-cnn:shapes:52de6987]`, `accuracy[shape]`)."""

    metric: str
    name: str
    value: float
    standard_error: float | None = None
    higher_is_better: bool = False
    interval: tuple[float, float] | None = None  # of 95 %, see `ldm.evaluation.intervals`
    halves: tuple[float, ...] = ()  # the figure of each half-sample, from which the interval and differences follow
    directed: bool = True  # False: neither higher nor lower is better, but nearer to the value of real images
    target: float | None = None  # that value, where it is known

    def loss(self, value: float | None = None) -> float:
        """Lower is better, of this value or of another in its place; NaN, and what cannot be judged, is the worst."""
        value = self.value if value is None else value
        if math.isnan(value) or (not self.directed and self.target is None):
            return math.inf
        if self.target is not None:
            return abs(value - self.target)
        return -value if self.higher_is_better else value

    __repr__ = short_repr


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Figures, what they were measured on and by, what they cost, and what to be careful about."""

    figures: tuple[MetricValue, ...]
    manifest: Mapping[str, Any]
    evaluations_per_image: float = 0.0  # network evaluations (samples x branches); 0 for folders
    seconds_per_image: float = 0.0  # of sampling
    warnings: tuple[str, ...] = ()
    baseline: tuple[MetricValue, ...] = ()  # figures of real images other than the reference; "floor" in JSON

    __repr__ = short_repr

    def __getitem__(self, metric: str) -> MetricValue:
        figures = [figure for figure in self.figures if figure.metric == metric]
        if not figures:
            raise UnknownNameError(f"{metric}; measured: {', '.join(figure.metric for figure in self.figures)}")
        return figures[0]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`; what is not finite becomes None."""
        return finite({"floor" if name == "baseline" else name: value for name, value in asdict(self).items()})

    @classmethod
    def from_json(cls, value: object) -> EvaluationResult:
        """What `to_json` gave; `ValueError` names the place of what it did not."""
        stored: dict[str, Any] = dict(convert(value, StoredResult))
        figures, baseline = map(figures_from_json, (stored["figures"], stored.pop("floor", ())))
        return cls(**{**stored, "figures": figures, "baseline": baseline})


class StoredFigure(TypedDict):
    """A `MetricValue` in JSON, which has null for a number that is not finite."""

    metric: str
    name: str
    value: float | None
    standard_error: NotRequired[float | None]
    higher_is_better: NotRequired[bool]
    interval: NotRequired[tuple[float | None, float | None] | None]
    halves: NotRequired[tuple[float | None, ...]]
    directed: NotRequired[bool]
    target: NotRequired[float | None]


class StoredResult(TypedDict):
    """An `EvaluationResult` in JSON."""

    figures: tuple[StoredFigure, ...]
    manifest: dict[str, Any]
    evaluations_per_image: NotRequired[float]
    seconds_per_image: NotRequired[float]
    warnings: NotRequired[tuple[str, ...]]
    floor: NotRequired[tuple[StoredFigure, ...]]


def figures_from_json(values: Iterable[StoredFigure]) -> tuple[MetricValue, ...]:
    """Figures of a converted result."""
    return tuple(MetricValue(**{**figure, **_numbers(figure)}) for figure in values)  # type: ignore[typeddict-item]


def _numbers(figure: StoredFigure) -> dict[str, Any]:
    """NaN where a number was not finite."""

    def number(value: float | None) -> float:
        return float("nan") if value is None else value

    ends = figure.get("interval")
    return {
        "value": number(figure["value"]),
        "interval": None if ends is None else (number(ends[0]), number(ends[1])),
        "halves": tuple(map(number, figure.get("halves", ()))),
    }
