"""Memorisation: how near samples lie to training images, against how near images lie that the model never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import EvalCondition
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.extractors import Extractor, figure_name
from ldm.evaluation.features.feature_cache import chosen_indices, features_of
from ldm.evaluation.metrics.intervals import half_samples, interval
from ldm.evaluation.metrics.manifold import squared_distances
from ldm.evaluation.metrics.neighbours import nearest_training
from ldm.evaluation.records import MetricValue
from ldm.runtime.errors import UserError
from ldm.runtime.images import enlarged, grid, save_png
from ldm.sampling.config import SamplingConfig
from ldm.sampling.pipeline import Pipeline

_SHOWN, _NEIGHBOURS = 8, 3
_NEAR = 0.01  # of the held-out images lie nearer than what counts as near


@dataclass(frozen=True)
class Memorisation:
    """Figures, what they were measured on, and the samples nearest to training images with these: (sample, images)."""

    figures: tuple[MetricValue, ...]
    facts: dict[str, Any]
    suspects: tuple[tuple[int, tuple[int, ...]], ...]


def training_and_held_out(data: ImageData, other: ImageData | None) -> tuple[ImageData, ImageData]:
    """Which of the two splits was trained on; `UserError` where one of them is missing."""
    pair = [each for each in (data, other) if each is not None]
    train = [each for each in pair if each.split == "train"]
    held = [each for each in pair if each.split != "train"]
    if not train or not held:
        raise UserError(
            f"{data.name}: needs the images that were trained on, and held-out ones",
            remedy="`validation_fraction` holds some out",
            setting="metrics",
            value="memorisation",
        )
    return train[0], held[0]


def memorisation(
    samples: Tensor, extractor: Extractor, train: ImageData, held_out: ImageData, config: EvaluationConfig
) -> Memorisation:
    """Of the samples' features (M, D): their distance to the nearest training image, against that of held-out images.

    `memorisation` is the median distance over that of held-out images: about 1 for a model that invents, 0 for one that
    copies. `memorisation/near` is the share of samples that are nearer than 99 % of the held-out images are.
    """
    size = config.batch_size
    indices = chosen_indices(len(train), config.num_reference, config.seed)
    known = features_of(extractor, train, indices, batch_size=size, label="features of training images")
    unseen = chosen_indices(len(held_out), config.num_reference, config.seed)
    fresh = features_of(extractor, held_out, unseen, batch_size=size, label="features of held-out images")
    samples = samples.to(known.device)
    found, own = nearest_training(known, samples, fresh), nearest_training(known, fresh, fresh)
    near = (found.distance < torch.quantile(own.distance, _NEAR)).double()
    halves = half_samples(len(samples), config.bootstrap, seed=config.seed)
    parts = tuple(float(found.ratio[half.to(samples.device)].median()) for half in halves)
    value, share, name = float(found.ratio.median()), float(near.mean()), figure_name("memorisation", extractor)
    error = (share * (1 - share) / len(near)) ** 0.5
    figures = (
        MetricValue("memorisation", f"{name} distance ratio", value, None, True, interval(value, parts), parts),
        MetricValue("memorisation/near", f"{name} share of near copies", share, error),
    )
    worst = found.ratio.argsort()[:_SHOWN]
    nearest = squared_distances(samples[worst], known).topk(min(_NEIGHBOURS, len(known)), largest=False).indices
    suspects = tuple(
        (sample, tuple(indices[place] for place in row))
        for sample, row in zip(worst.tolist(), nearest.tolist(), strict=True)
    )
    facts = {
        "training_images": len(known),
        "held_out_images": len(fresh),
        "near": f"nearer to a training image than {1 - _NEAR:.0%} of the held-out images",
        "suspects": [{"sample": sample, "training_images": list(row)} for sample, row in suspects],
    }
    return Memorisation(figures, facts, suspects)


def save_suspects(
    path: str | Path,
    found: Memorisation,
    pipeline: Pipeline,
    conditions: Sequence[EvalCondition],
    sampling: SamplingConfig,
    config: EvaluationConfig,
    train: ImageData,
) -> None:
    """A row for each suspect: the sample, drawn once more by its seed, and the training images nearest to it."""
    shown: list[Tensor] = []
    for sample, neighbours in found.suspects:
        batches = pipeline.generate([conditions[sample].request], sampling, seed=config.seed, first_index=sample)
        shown.append(next(iter(batches))[0].float().cpu())
        shown += [train[index].image for index in neighbours]
    columns = 1 + len(found.suspects[0][1])
    save_png(enlarged(grid(torch.stack(shown), columns)), path)
