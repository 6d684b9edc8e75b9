"""Figures in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.evaluation.records import EvaluationResult

_SETTINGS = (  # of the manifest, in this order
    *("extractor", "preprocessing", "data", "split", "real", "fake", "resized"),
    *("num_images", "num_reference", "conditions", "weights", "seed"),
)


def show(result: EvaluationResult) -> None:
    """Print figures, the facts that belong beside them, and warnings."""
    baselines = {figure.metric: figure.value for figure in result.baseline}
    for figure in result.figures:
        error = "" if figure.standard_error is None else f" ± {figure.standard_error:.2g}"
        between = "" if figure.interval is None else "  (95 %: {:.5g} to {:.5g})".format(*figure.interval)
        baseline = f"  floor {baselines[figure.metric]:.5g}" if figure.metric in baselines else ""
        print(f"{figure.name}: {figure.value:.5g}{error}{between}{baseline}")
    manifest = result.manifest
    if manifest.get("floor"):
        from ldm.evaluation.baseline import baseline_line

        print(baseline_line(manifest["floor"]))
    print(_listed({name: manifest[name] for name in _SETTINGS if name in manifest}))
    if "reference" in manifest:
        print("reference: " + _listed({name: value for name, value in manifest["reference"].items() if value}))
    for name in ("memorisation", "calibration", "iwae", "aggregate_posterior", "likelihood"):
        if name in manifest:
            print(f"{name}: " + _listed({key: value for key, value in manifest[name].items() if key != "suspects"}))
    if "sampling" in manifest:
        print(_listed({name: value for name, value in manifest["sampling"].items() if value not in (None, (), [])}))
    for warning in result.warnings:
        print(f"note: {warning}")


def _listed(values: Mapping[str, object]) -> str:
    return "; ".join(f"{name} {value}" for name, value in values.items())
