"""The report of a quick start: its samples, the table of their attributes and its small comparison, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.comparison.config import ComparisonConfig
from ldm.comparison.ranking import rank_comparison
from ldm.comparison.records import Comparison
from ldm.comparison.report import trade_offs
from ldm.comparison.tables import format_value, is_accuracy
from ldm.reports.page import data_url, render_template
from ldm.runtime.errors import user_errors
from ldm.runtime.files import read_json
from ldm.training.run_folder import RUN_FILE, commands_of

_TRAININGS = ("autoencoder", "diffusion", "classifier")
_HEADS = {"shape": "shape correct", "colour": "colour", "background": "background", "red": "is red"}


def render_quickstart(root: Path, result: Mapping[str, Any]) -> str:
    """The page of a folder, of which `result` is the content of quickstart.json."""
    rows = result["rows"]
    grids = [(row["title"], root / "pictures" / row["file"] / "grid.png") for row in rows]
    trainings = [root / name for name in _TRAININGS if (root / name / RUN_FILE).is_file()]
    return render_template(
        "quickstart.html.j2",
        sentence=_sentence(result),
        settings=result["settings"],
        heads=["samples", *_HEADS.values(), "evaluations an image"],
        rows=[[row["title"], *_shares(row), row["evaluations"]] for row in rows],
        judge=", ".join(f"{k} {v:.1%}" for k, v in result["judge_accuracy_on_held_out_shapes"].items()),
        grids=[{"title": title, "url": data_url(path)} for title, path in grids if path.is_file()],
        comparison=_comparison(root / "comparison" / "comparison.json"),
        commands=[result.get("command", "ldm quickstart"), *(line for run in trainings for line in commands_of(run))],
    )


def _sentence(result: Mapping[str, Any]) -> str:
    plain, guided = result["rows"][:2]
    return (
        f"The requested shape is there in {guided['shape']:.1%} of the samples at guidance scale 7.5, in "
        f"{plain['shape']:.1%} at scale 1; the autoencoder restores held-out images at "
        f"{result['reconstruction_psnr_db']:.1f} dB PSNR."
    )


def _shares(row: Mapping[str, Any]) -> list[str]:
    return ["-" if row[name] is None else f"{row[name]:.1%}" for name in _HEADS]


def _comparison(file: Path) -> dict[str, Any] | None:
    """The answer, the table and the plots of the comparison; None of a quick start that has none."""
    if not file.is_file():
        return None
    with user_errors(file):
        comparison = Comparison.from_json(read_json(file))
    ranking = rank_comparison(comparison, ComparisonConfig())
    figures = comparison.runs[0].result.figures
    names = [value.name if is_accuracy(value) else value.name.split("[")[0] for value in figures]
    real = {value.metric: format_value(value) for value in comparison.baseline.figures}
    rows = [
        [run.label, *map(format_value, run.result.figures), f"{run.result.evaluations_per_image:g}"]
        for run in comparison.runs
    ]
    if real:
        values = [real.get(value.metric, "-") for value in figures]
        rows.append(["real images", *values, "-"])
    plots = trade_offs(comparison.runs, ranking)
    return {
        "sentence": ranking.sentence,
        "manifest": comparison.manifest,
        "heads": ["method", *names, "evaluations an image"],
        "rows": rows,
        "plots": [{"svg": plot.scatter.svg(), "caption": plot.caption} for plot in plots],
    }
