"""Memorisation: how near samples lie to training images, against how near held-out images lie to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.extractors import Extractor, figure_name
from ldm.evaluation.features.feature_cache import chosen_indices, features_of
from ldm.evaluation.intervals import half_samples, interval
from ldm.evaluation.metrics.base import MetricResult, ModelEvaluation, ModelMetric
from ldm.evaluation.metrics.neighbours import nearest_distances, squared_distances
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import metrics
from ldm.runtime.images import enlarged, grid, save_png

_SUSPECTS, _NEIGHBOURS = 8, 3
_NEAR = 0.01  # of the held-out images lie nearer than what counts as near


@metrics.register("memorisation")
class MemorisationMetric(ModelMetric):
    def measure(self, evaluation: ModelEvaluation) -> MetricResult:
        context = evaluation.context
        train, held_out = self.training_and_held_out(context)
        assert evaluation.extractor is not None
        copies = memorisation(evaluation.features, evaluation.extractor, train, held_out, context.config)
        if evaluation.contact_sheet is not None:
            save_contact_sheet(evaluation.contact_sheet, copies.manifest["suspects"], evaluation, train)
        return MetricResult(copies.figures, {"memorisation": copies.manifest})


def memorisation(
    samples: Tensor, extractor: Extractor, train: ImageData, held_out: ImageData, config: EvaluationConfig
) -> MetricResult:
    """Of the samples' features (M, D): their distance to the nearest training image, against that of held-out images.

    `memorisation` is the median distance over that of held-out images: about 1 without memorisation, 0 for copies.
    `memorisation/near` is the share of samples that are nearer than 99 % of the held-out images are. The manifest has
    as `suspects` the samples nearest to training images, with these.
    """
    size = config.batch_size
    indices = chosen_indices(len(train), config.num_reference, config.seed)
    train_features = features_of(extractor, train, indices, batch_size=size, label="features of training images")
    other_indices = chosen_indices(len(held_out), config.num_reference, config.seed)
    others = features_of(extractor, held_out, other_indices, batch_size=size, label="features of held-out images")
    samples = samples.to(train_features.device)
    distance, of_held_out = nearest_distances(samples, train_features), nearest_distances(others, train_features)
    ratio = distance / of_held_out.median().clamp(min=1e-12)  # far below 1: nearer than held-out images are
    near = (distance < torch.quantile(of_held_out, _NEAR)).double()
    halves = half_samples(len(samples), config.bootstrap, seed=config.seed, device=samples.device)
    parts = tuple(float(ratio[half].median()) for half in halves)
    value, share, name = float(ratio.median()), float(near.mean()), figure_name("memorisation", extractor)
    error = (share * (1 - share) / len(near)) ** 0.5
    figures = (
        MetricValue("memorisation", f"{name} distance ratio", value, None, True, interval(value, parts), parts),
        MetricValue("memorisation/near", f"{name} share of near copies", share, error),
    )
    worst = ratio.argsort()[:_SUSPECTS]
    count = min(_NEIGHBOURS, len(train_features))
    neighbours = squared_distances(samples[worst], train_features).topk(count, largest=False).indices
    suspects = []
    for sample, row in zip(worst.tolist(), neighbours.tolist(), strict=True):
        suspects.append({"sample": sample, "training_images": [indices[column] for column in row]})
    manifest = {
        "training_images": len(train_features),
        "held_out_images": len(others),
        "near": f"nearer to a training image than {1 - _NEAR:.0%} of the held-out images",
        "suspects": suspects,
    }
    return MetricResult(figures, manifest)


def save_contact_sheet(
    path: Path, suspects: list[dict[str, Any]], evaluation: ModelEvaluation, train: ImageData
) -> None:
    """A row for each suspect: the sample, drawn once more by its seed, and the training images nearest to it."""
    images: list[Tensor] = []
    sampling, seed = evaluation.context.sampling, evaluation.context.config.seed
    for suspect in suspects:
        request, sample = evaluation.conditions[suspect["sample"]].request, suspect["sample"]
        batches = evaluation.model.generate([request], sampling, seed=seed, first_index=sample)
        images.append(next(iter(batches))[0].float().cpu())
        images += [train[index].image for index in suspect["training_images"]]
    save_png(enlarged(grid(torch.stack(images), len(images) // len(suspects))), path)
