"""The result of an evaluation: figures with their names and errors, and the manifest that they hold for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


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

    def __getitem__(self, metric: str) -> MetricValue:
        figures = [figure for figure in self.figures if figure.metric == metric]
        if not figures:
            raise KeyError(f"{metric}; measured: {', '.join(figure.metric for figure in self.figures)}")
        return figures[0]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`; what is not finite becomes None."""
        return finite({"floor" if name == "baseline" else name: value for name, value in asdict(self).items()})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EvaluationResult:
        """What `to_json` gave."""
        plain = {name: content for name, content in value.items() if name != "floor"}
        figures, baseline = figures_from_json(value["figures"]), figures_from_json(value.get("floor", ()))
        return cls(**{**plain, "figures": figures, "baseline": baseline, "warnings": tuple(value["warnings"])})


def figures_from_json(values: Iterable[Mapping[str, Any]]) -> tuple[MetricValue, ...]:
    """Figures from what `asdict` and `finite` made of them."""
    return tuple(MetricValue(**{**figure, **_numbers(figure)}) for figure in values)


def _numbers(figure: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON changed: a None that was not finite, and lists that were tuples."""

    def number(value: float | None) -> float:
        return float("nan") if value is None else value

    ends = figure.get("interval")
    return {
        "value": number(figure["value"]),
        "interval": None if ends is None else (number(ends[0]), number(ends[1])),
        "halves": tuple(map(number, figure.get("halves", ()))),
    }


def finite(value: Any) -> Any:
    """The same value with every number that JSON cannot hold replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
