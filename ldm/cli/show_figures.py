"""Figures in the terminal."""

from __future__ import annotations

from ldm.evaluation.baseline import baseline_line
from ldm.evaluation.records import EvaluationResult


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
        print(baseline_line(manifest["floor"]))
    names = (
        "extractor",
        "preprocessing",
        "data",
        "split",
        "real",
        "fake",
        "resized",
        "num_images",
        "num_reference",
        "conditions",
        "weights",
        "seed",
    )
    print("; ".join(f"{name} {manifest[name]}" for name in names if name in manifest))
    if "reference" in manifest:
        print("reference: " + "; ".join(f"{name} {value}" for name, value in manifest["reference"].items() if value))
    for name in ("memorisation", "calibration"):
        if name in manifest:
            plain = {key: value for key, value in manifest[name].items() if key != "suspects"}
            print(f"{name}: " + "; ".join(f"{key} {value}" for key, value in plain.items()))
    for name in ("iwae", "aggregate_posterior"):
        if name in manifest:
            print(f"{name}: " + "; ".join(f"{key} {value}" for key, value in manifest[name].items()))
    if "likelihood" in manifest:
        print("likelihood: " + "; ".join(f"{name} {value}" for name, value in manifest["likelihood"].items()))
    if "sampling" in manifest:
        print(
            "; ".join(f"{name} {value}" for name, value in manifest["sampling"].items() if value not in (None, (), []))
        )
    for warning in result.warnings:
        print(f"note: {warning}")
