"""What figures hold for, to be stored beside them, and what to be careful about when they are quoted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.data.dataset import ImageData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators
from ldm.evaluation.references import opened_reference
from ldm.runtime.files import read_json
from ldm.runtime.text import counted, printable
from ldm.sampling.model_folder import INDEX, WEIGHTS

_SMALL = 10_000  # below so many images FID's bias is larger than most differences worth telling


def describe(
    data: ImageData, config: EvaluationConfig, evaluators: Evaluators, folder: Path | None = None
) -> dict[str, Any]:
    """The manifest, but for the sampler: what the figures of the model in `folder` hold for."""
    classes = counted(len(data.class_names), "class")
    balanced = f"balanced over {classes}" if data.class_names else "as drawn from the data"
    manifest = describe_evaluators(evaluators) | {
        "data": data.name,
        "split": data.split,
        "data_fingerprint": data.fingerprint,
        "image_size": data.image_size,
        "num_images": config.num_images,
        "num_reference": count_of_reference(data, config),
        "conditions": balanced,
        "seed": config.seed,
        "weights": weights_of(folder),
    }
    file = opened_reference(config)
    return manifest if file is None else manifest | {"reference": file.manifest()}


def count_of_reference(data: ImageData, config: EvaluationConfig) -> int:
    """How many real images there are to compare with; 0 of a reference file without the number."""
    file = opened_reference(config)
    return min(config.num_reference, len(data)) if file is None else file.count


def weights_of(folder: Path | None) -> str:
    """Whether the weights of a model are averaged, by its folder."""
    weights = read_json(folder / INDEX).get(WEIGHTS) if folder is not None and (folder / INDEX).is_file() else None
    if isinstance(weights, str):
        return printable(weights, 80)
    return "as published in the model folder, which does not tell whether they are an EMA"


def cautions(num_images: int, num_reference: int, evaluators: Evaluators) -> tuple[str, ...]:
    """What to be careful about when the figures are quoted."""
    notes = []
    extractor, judge = evaluators.extractor, evaluators.judge
    fewest = min(num_images, num_reference or num_images)
    if extractor is not None and fewest < _SMALL:
        notes.append(f"N = {fewest}: the Frechet distance is biased upwards; compare only figures of equal N")
    if extractor is not None and fewest <= (dim := extractor.dim):
        notes.append(f"N = {fewest} is not above the {dim} feature dimensions: the covariance is rank-deficient")
    if extractor is not None and extractor.name != "inception":
        notes.append(f"features are {extractor.name}, not Inception: comparable only under this very name")
    for name, accuracy in judge.accuracy.items() if judge is not None else ():
        if not accuracy >= 0.95:
            notes.append(f"the judge of {name} is right in only {100 * accuracy:.1f} % of held-out real images")
    return tuple(notes)


def describe_evaluators(evaluators: Evaluators) -> dict[str, Any]:
    extractor, judge = evaluators.extractor, evaluators.judge
    manifest: dict[str, Any] = {}
    if extractor is not None:
        manifest |= {"extractor": extractor.name, "dim": extractor.dim, "preprocessing": extractor.preprocessing}
    if judge is not None:
        manifest |= {"judge": judge.name, "judge_accuracy": dict(judge.accuracy)}
        manifest["judge_held_out"] = judge.metadata.held_out
    if evaluators.clip is not None:
        manifest["clip_score"] = f"{evaluators.clip.FORM}; {evaluators.clip.name}"
    return manifest
