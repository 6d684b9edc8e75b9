"""Figures in the terminal."""

from __future__ import annotations

from ldm.evaluation import EvaluationResult
from ldm.evaluation.baseline import baseline_line


def show(result: EvaluationResult) -> None:
    """Print figures, the facts that belong beside them, and warnings."""
    floors = {figure.metric: figure.value for figure in result.baseline}
    for figure in result.figures:
        error = "" if figure.standard_error is None else f" ± {figure.standard_error:.2g}"
        between = "" if figure.interval is None else "  (95 %: {:.5g} to {:.5g})".format(*figure.interval)
        floor = f"  floor {floors[figure.metric]:.5g}" if figure.metric in floors else ""
        print(f"{figure.name}: {figure.value:.5g}{error}{between}{floor}")
    facts = result.manifest
    if facts.get("floor"):
        print(baseline_line(facts["floor"]))
    kept = (
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
    print("; ".join(f"{name} {facts[name]}" for name in kept if name in facts))
    if "reference" in facts:
        print("reference: " + "; ".join(f"{name} {value}" for name, value in facts["reference"].items() if value))
    for name in ("memorisation", "calibration"):
        if name in facts:
            plain = {key: value for key, value in facts[name].items() if key != "suspects"}
            print(f"{name}: " + "; ".join(f"{key} {value}" for key, value in plain.items()))
    for name in ("iwae", "aggregate_posterior"):
        if name in facts:
            print(f"{name}: " + "; ".join(f"{key} {value}" for key, value in facts[name].items()))
    if "likelihood" in facts:
        print("likelihood: " + "; ".join(f"{name} {value}" for name, value in facts["likelihood"].items()))
    if "sampling" in facts:
        print("; ".join(f"{name} {value}" for name, value in facts["sampling"].items() if value not in (None, (), [])))
    for warning in result.warnings:
        print(f"note: {warning}")
