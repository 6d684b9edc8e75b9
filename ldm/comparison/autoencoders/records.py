"""What a comparison of autoencoders found: one record a run, a table, CSV, JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ldm.comparison.text import aligned, csv_of
from ldm.evaluation.records import EvaluationResult, MetricValue, finite

_COLUMNS = {  # figures in the table: metric -> (title, digits)
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
    "rfid": ("", ".4g"),  # its own name, which tells the features
    "rate": ("bits/pixel", ".3f"),
    "codebook/used": ("codes used", ".1%"),
    "codebook/perplexity": ("perplexity", ".4g"),
    "active_units": ("active units", ".0f"),
}


@dataclass(frozen=True, slots=True)
class AutoencoderRow:
    """One run: what it is, what its training took, and its figures with their manifest."""

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
        """How many numbers the latents of an image are."""
        c, h, w = self.latents
        return c * h * w

    def figure(self, metric: str) -> MetricValue | None:
        """The figure of a metric; several codebooks have the mean of their perplexities; None if not measured."""
        found = {figure.metric: figure for figure in self.result.figures}
        parts = [figure for name, figure in found.items() if name.startswith(f"{metric}/") and metric.count("/")]
        if metric in found or not parts:
            return found.get(metric)
        return MetricValue(metric, metric, sum(part.value for part in parts) / len(parts), higher_is_better=True)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return finite({**asdict(self), "result": self.result.to_json()})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AutoencoderRow:
        """What `to_json` gave."""
        found = {**value, "latents": tuple(value["latents"]), "result": EvaluationResult.from_json(value["result"])}
        return cls(**found)


@dataclass(frozen=True, slots=True)
class AutoencoderComparison:
    """All runs, measured on the same images with the same features."""

    rows: tuple[AutoencoderRow, ...]
    manifest: Mapping[str, Any]  # what all rows share
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        rows = [row.to_json() for row in self.rows]
        return {"manifest": dict(self.manifest), "warnings": list(self.warnings), "runs": rows}

    def table(self) -> str:
        """Text: a row a run; lower distances and rates are better, all else higher."""
        metrics = [metric for metric in _COLUMNS if any(row.figure(metric) for row in self.rows)]
        head = ["run", "bottleneck", "coder", "latents", "encoder", "decoder", *map(self._title, metrics)]
        head += ["steps", "training"]
        lines = [head]
        for row in self.rows:
            shape = f"{'x'.join(map(str, row.latents))} = {row.numbers}"
            facts = [row.name, row.bottleneck, row.coder, shape, f"{row.encoder_parameters:,}"]
            facts += [f"{row.decoder_parameters:,}", *(_shown(row.figure(name), _COLUMNS[name][1]) for name in metrics)]
            facts += ["-" if row.steps is None else str(row.steps)]
            lines.append([*facts, "-" if row.seconds is None else f"{row.seconds:.0f} s"])
        return aligned(lines)

    def csv(self) -> str:
        """A line a run, with every figure and its standard error."""
        metrics = list(dict.fromkeys(figure.metric for row in self.rows for figure in row.result.figures))
        facts = ["bottleneck", "coder", "numbers", "encoder_parameters", "decoder_parameters", "steps", "seconds"]
        columns = [column for metric in metrics for column in (metric, f"{metric} standard error")]
        lines: list[list[Any]] = [["run", "latents", *facts, *columns]]
        for row in self.rows:
            found = {figure.metric: figure for figure in row.result.figures}
            values: list[Any] = [row.name, "x".join(map(str, row.latents)), *(getattr(row, fact) for fact in facts)]
            for metric in metrics:
                figure = found.get(metric)
                values += [None, None] if figure is None else [figure.value, figure.standard_error]
            lines.append(values)
        return csv_of(lines)

    def _title(self, metric: str) -> str:
        title = _COLUMNS[metric][0]
        return title or next(figure.name for row in self.rows if (figure := row.figure(metric)))


def _shown(figure: MetricValue | None, digits: str) -> str:
    if figure is None:
        return "-"
    text = f"{figure.value:{digits}}".replace("%", " %")
    return text if figure.standard_error is None else f"{text} ± {figure.standard_error:{digits.replace('.4g', '.2g')}}"
