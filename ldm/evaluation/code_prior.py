"""Evaluate a prior over codes: distances of its samples as for any model, and what held-out codes cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import balanced_indices, conditions_of
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import evaluate_model
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.runtime.errors import UserError
from ldm.sampling.code_prior import CodePriorModel, bits_of_codes
from ldm.sampling.config import SamplingConfig


def evaluate_prior(
    model: CodePriorModel,
    data: ImageData,
    sampling: SamplingConfig | None = None,
    config: EvaluationConfig | None = None,
    *,
    train_data: ImageData | None = None,
    other_data: ImageData | None = None,
    contact_sheet: Path | None = None,
) -> EvaluationResult:
    """As `evaluate_model`, and before its figures the bits a code and a pixel of `num_images` images of `data`; with
    `metrics` bits_per_code these alone.

    They are told the images' conditions, and once more nothing, where there are any; with standard errors. The bits are
    those of the codes alone: the decoder makes no promise of pixels.
    """
    config = config or EvaluationConfig()
    if "bits_per_dim" in config.metrics:
        raise UserError(
            "a prior over codes has no likelihood of pixels",
            remedy="use bits_per_code",
            setting="metrics",
            value="bits_per_dim",
        )
    if "calibration" in config.metrics:
        raise UserError(
            "a prior over codes has no classifier",
            remedy="measure its judge with a model",
            setting="metrics",
            value="calibration",
        )
    if config.without_samples:
        facts = {"data": data.name, "split": data.split, "data_fingerprint": data.fingerprint, "seed": config.seed}
        facts |= {"num_reference": min(config.num_images, len(data))}
        return EvaluationResult(code_figures(model, data, config), facts)
    drawing = replace(config, metrics=tuple(name for name in config.metrics if name != "bits_per_code"))
    found = evaluate_model(
        cast(Any, model),
        data,
        sampling,
        drawing,
        train_data=train_data,
        other_data=other_data,
        contact_sheet=contact_sheet,
    )
    return replace(found, figures=(*code_figures(model, data, config), *found.figures))


@torch.no_grad()
def code_figures(model: CodePriorModel, data: ImageData, config: EvaluationConfig) -> tuple[MetricValue, ...]:
    """Bits a code and a pixel of images of `data`, chosen by the seed, and log2 K beside them."""
    count = min(config.num_images, len(data))
    indices, levels = balanced_indices(data, count, config.seed), model.priors.shape.levels
    parts = []
    for start in range(0, count, config.batch_size):
        images = torch.stack([data[index].image for index in indices[start : start + config.batch_size]])
        parts.append(model.autoencoder.codes(images.to(model.device)))
    codes = [torch.cat([part[level] for part in parts]) for level in range(len(levels))]
    requests = conditions_of(cast(Any, model), data, indices)
    places, pixels = sum(level.length for level in levels), model.image_size**2
    figures = []
    for null in (False, True) if model.has_classes or model.has_text else (False,):
        bits = bits_of_codes(model.priors, model.conditioner, codes, requests, null=null)  # (N, levels)
        suffix = "[null]" if null else ""
        figures.append(_figure(f"bits_per_code{suffix}", bits.sum(1) / places))
        for level, grid in enumerate(levels) if len(levels) > 1 else ():
            figures.append(_figure(f"bits_per_code[level {level}]{suffix}", bits[:, level] / grid.length))
        if not null:
            figures.append(_figure("bits_per_pixel", bits.sum(1) / pixels))
    return (*figures, MetricValue("bits_per_code", "bits_per_code[uniform]", model.priors.shape.uniform_bits))


def _figure(name: str, values: torch.Tensor) -> MetricValue:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return MetricValue(name.split("[")[0], name, float(values.mean()), error)
