"""The result of a comparison of autoencoders: one record a run, a table, CSV, JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from ldm.comparison.tables import align_columns, to_csv
from ldm.evaluation.records import EvaluationResult, MetricValue, StoredResult
from ldm.runtime.schema import convert, finite
from samplers.level import short_repr

_COLUMNS = {  # in the table: metric -> (title, digits)
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
    "rfid": ("", ".4g"),  # its own name, which includes the features
    "rate": ("bits/pixel", ".3f"),
    "codebook/used": ("codes used", ".1%"),
    "codebook/perplexity": ("perplexity", ".4g"),
    "active_units": ("active units", ".0f"),
}


class _StoredRecord(TypedDict):
    name: str
    bottleneck: str
    coder: str
    latents: tuple[int, int, int]
    encoder_parameters: int
    decoder_parameters: int
    steps: int | None
    seconds: float | None
    result: StoredResult


@dataclass(frozen=True, slots=True)
class AutoencoderRecord:
    """One run: its model, the cost of its training, and its metric values with their manifest."""

    name: str
    bottleneck: str
    coder: str
    latents: tuple[int, ...]  # (C, h, w)
    encoder_parameters: int
    decoder_parameters: int  # with those of the bottleneck
    steps: int | None  # None: closed form, or not known
    seconds: float | None  # of training, without validation
    result: EvaluationResult

    @property
    def numbers(self) -> int:
        """How many numbers the latents of an image have."""
        c, h, w = self.latents
        return c * h * w

    def value(self, metric: str) -> MetricValue | None:
        """The value of a metric; of several codebooks the mean of their perplexities; None if not measured."""
        values = {value.metric: value for value in self.result.figures}
        parts = [value for name, value in values.items() if name.startswith(f"{metric}/") and metric.count("/")]
        if metric in values or not parts:
            return values.get(metric)
        return MetricValue(metric, metric, sum(part.value for part in parts) / len(parts), higher_is_better=True)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return finite({**asdict(self), "result": self.result.to_json()})

    @classmethod
    def from_json(cls, value: object) -> AutoencoderRecord:
        """The inverse of `to_json`; `ValueError` names the place of what it did not give."""
        stored: dict[str, Any] = dict(convert(value, _StoredRecord))
        return cls(**{**stored, "result": EvaluationResult.from_json(stored["result"])})


@dataclass(frozen=True, slots=True)
class AutoencoderComparison:
    """All runs, measured on the same images with the same features."""

    runs: tuple[AutoencoderRecord, ...]
    manifest: Mapping[str, Any]  # what all runs share
    warnings: tuple[str, ...] = ()

    __repr__ = short_repr

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        runs = [run.to_json() for run in self.runs]
        return {"manifest": dict(self.manifest), "warnings": list(self.warnings), "runs": runs}

    def table(self, width: int | None = None) -> str:
        """Text of at most this width: a row a run; lower distances and rates are better, all else higher."""
        columns = {
            metric: digits for metric, (_, digits) in _COLUMNS.items() if any(run.value(metric) for run in self.runs)
        }
        head = ["run", "bottleneck", "coder", "latents", "encoder", "decoder", *map(self._title, columns)]
        lines = [[*head, "steps", "training"]]
        for run in self.runs:
            shape = f"{'x'.join(map(str, run.latents))} = {run.numbers}"
            sizes = f"{run.encoder_parameters:,}", f"{run.decoder_parameters:,}"
            values = [_format_value(run.value(metric), digits) for metric, digits in columns.items()]
            steps = "-" if run.steps is None else str(run.steps)
            seconds = "-" if run.seconds is None else f"{run.seconds:.0f} s"
            lines.append([run.name, run.bottleneck, run.coder, shape, *sizes, *values, steps, seconds])
        return align_columns(lines, width)

    def csv(self) -> str:
        """A line a run, with every metric and its standard error."""
        metrics = list(dict.fromkeys(value.metric for run in self.runs for value in run.result.figures))
        names = ["bottleneck", "coder", "numbers", "encoder_parameters", "decoder_parameters", "steps", "seconds"]
        columns = [column for metric in metrics for column in (metric, f"{metric} standard error")]
        lines: list[list[Any]] = [["run", "latents", *names, *columns]]
        for run in self.runs:
            pairs = {value.metric: (value.value, value.standard_error) for value in run.result.figures}
            settings = [getattr(run, name) for name in names]
            values = [number for metric in metrics for number in pairs.get(metric, (None, None))]
            lines.append([run.name, "x".join(map(str, run.latents)), *settings, *values])
        return to_csv(lines)

    def _title(self, metric: str) -> str:
        return _COLUMNS[metric][0] or next(value.name for run in self.runs if (value := run.value(metric)))


def _format_value(value: MetricValue | None, digits: str) -> str:
    if value is None:
        return "-"
    text = f"{value.value:{digits}}".replace("%", " %")
    return text if value.standard_error is None else f"{text} ± {value.standard_error:{digits.replace('.4g', '.2g')}}"
