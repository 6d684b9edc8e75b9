"""The calibration error of the judge, and of noisy classifiers by noise level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.feature_cache import chosen_indices
from ldm.evaluation.features.judge import Judge
from ldm.evaluation.metrics.base import MetricResult, ModelEvaluation, ModelMetric
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import metrics
from ldm.runtime.errors import UserError
from ldm.runtime.progress import progress
from ldm.sampling.pipeline import Pipeline
from samplers import SampleNoise

_MOST = 4096  # images
_TIMES = (0.0, 0.25, 0.5, 0.75)  # of T - 1


@metrics.register("calibration")
class Calibration(ModelMetric):
    """Of held-out images: of the other split where `data` were trained on."""

    def measure(self, evaluation: ModelEvaluation) -> MetricResult:
        data, other, config = evaluation.data, evaluation.context.other_data, evaluation.context.config
        pipeline = evaluation.model if isinstance(evaluation.model, Pipeline) else None
        held_out = other if data.split == "train" and other is not None else data
        figures, manifest = calibration_figures(pipeline, evaluation.judge, held_out, config)
        about = {"data": held_out.name, "split": held_out.split, "data_fingerprint": held_out.fingerprint}
        return MetricResult(figures, {"calibration": manifest}, about | {"seed": config.seed})


@torch.no_grad()
def calibration_figures(
    pipeline: Pipeline | None, judge: Judge | None, data: ImageData, config: EvaluationConfig
) -> tuple[tuple[MetricValue, ...], dict[str, Any]]:
    """Expected calibration errors on real images of `data`, at most 4096, and what they were measured on.

    Of the judge, one a task; of each classifier of the pipeline under the noise of four times of its schedule.
    `UserError` where there is neither, or no image with a label.
    """
    classifiers = {} if pipeline is None else pipeline.networks.classifiers
    if judge is None and not classifiers:
        problem = "there is neither a judge for this data nor a classifier"
        raise UserError(problem, remedy="leave it out", setting="metrics", value="calibration")
    indices = chosen_indices(len(data), min(config.num_reference, _MOST), config.seed)
    labels = torch.tensor([data.label(i) for i in indices]) if data.class_names else torch.full((len(indices),), -1)
    class_probs: dict[str, list[Tensor]] = {}
    for start in progress(range(0, len(indices), config.batch_size), "calibration"):
        rows = indices[start : start + config.batch_size]
        images = torch.stack([data[i].image for i in rows])
        probs = {} if judge is None else {judge.name + " " + k: v for k, v in judge.probabilities(images).items()}
        for name, classifier in classifiers.items():
            assert pipeline is not None
            latents = pipeline.encode(images)
            draws = SampleNoise(config.seed, rows, "calibration")
            noise = draws.initial(latents.shape[1:], latents.dtype, latents.device)
            for fraction in _TIMES:
                t = fraction * (classifier.schedule.num_train_timesteps - 1)
                level = classifier.schedule.level(t)
                times = torch.full((len(rows),), t, device=latents.device)
                logits = classifier.network(level.alpha * latents + level.sigma * noise, times)
                probs[f"{name} at noise ratio {level.noise_ratio:.3g}"] = logits.float().softmax(1)
        for name, batch in probs.items():
            class_probs.setdefault(name, []).append(batch.cpu())
    figures = []
    for name, parts in class_probs.items():
        judged = judge is not None and name.startswith(f"{judge.name} ")
        right = _true_classes(judge, name, data, indices) if judge is not None and judged else labels
        known = right >= 0
        if known.any():
            error = calibration_error(torch.cat(parts)[known], right[known])
            short = name.removeprefix(f"{judge.name} ") if judge is not None else name
            figures.append(MetricValue(f"calibration/{short}", f"ECE[{name}]", error))
    if not figures:
        raise UserError(f"{data.name}: no image with a label", setting="metrics", value="calibration")
    return tuple(figures), {"images": len(indices), "split": data.split, "bins": 15}


def _true_classes(judge: Judge, name: str, data: ImageData, indices: list[int]) -> Tensor:
    """The number of the true class of the judge's task for each image; -1 where it is not known."""
    head = name.removeprefix(judge.name + " ")
    if head not in data.attribute_names:
        return torch.tensor([data.label(i) for i in indices])
    number: Mapping[str, int] = {value: k for k, value in enumerate(judge.heads[head])}
    return torch.tensor([number.get(str(data.attributes(i).get(head)), -1) for i in indices])


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3): mean |accuracy - confidence| over bins.

    Probabilities (N, K), labels (N,) the right classes; bins of equal width in the confidence, by their numbers.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(f"expected (N, K) and (N,), got {tuple(probabilities.shape)} and {tuple(labels.shape)}")
    confidence, chosen = probabilities.double().cpu().max(1)
    right = (chosen == labels.cpu()).double()
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, right - confidence)
    return float(sums.abs().sum() / len(labels))
