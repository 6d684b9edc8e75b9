"""Evaluate an autoencoder on held-out images: how well it restores them, what its latents cost and hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from autoencoders import Autoencoder, LossConfig
from ldm.data.dataset import ImageData
from ldm.data.selection import plain_batches, random_indices
from ldm.evaluation.autoencoder.base import (
    AutoencoderEvaluation,
    AutoencoderEvaluators,
    AutoencoderMetric,
    ReconstructionStats,
)
from ldm.evaluation.autoencoder.config import AutoencoderEvaluationConfig
from ldm.evaluation.evaluators import prepare_evaluators
from ldm.evaluation.features.extractors import Extractor
from ldm.evaluation.metrics.perceptual import lpips_distance
from ldm.evaluation.records import EvaluationResult
from ldm.evaluation.registry import autoencoder_metrics
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError
from ldm.runtime.progress import progress
from ldm.runtime.text import counted

_SMALL = 10_000  # below so many images the Frechet distance's bias is larger than most differences worth telling


def unavailable(name: str, model: Autoencoder, image_size: int, config: AutoencoderEvaluationConfig) -> str | None:
    """Why this model cannot have the metric, or None where it can."""
    return autoencoder_metrics.get(name).unavailable(model, image_size, config)


def plan_metrics(model: Autoencoder, config: AutoencoderEvaluationConfig, image_size: int) -> tuple[str, ...]:
    """The metrics to measure: those named, else all that this model can have and that are measured by default.

    `UserError` for a named one that this model cannot have.
    """
    for name in config.metrics:
        if reason := unavailable(name, model, image_size, config):
            raise UserError(reason, setting="metrics", value=name)
    by_default = (info.name for info in autoencoder_metrics.all() if info.by_default)
    return tuple(dict.fromkeys(config.metrics)) or tuple(
        name for name in by_default if unavailable(name, model, image_size, config) is None
    )


def check_metrics(evaluation: AutoencoderEvaluation) -> None:
    """`UserError`, before any work, for a named metric that cannot be measured."""
    for name in evaluation.config.metrics:
        autoencoder_metrics.get(name).check(evaluation)


def check_files(config: AutoencoderEvaluationConfig) -> frozenset[str]:
    """What the metrics need whose files are there; `UserError` where they are named and are not."""
    needs: frozenset[str] = frozenset()
    for info in autoencoder_metrics.all():
        if autoencoder_metrics.get(info.name).check_files(config) and info.name in (config.metrics or [info.name]):
            needs |= info.needs
    return needs


def prepare_autoencoder_evaluators(
    config: AutoencoderEvaluationConfig, train_data: ImageData, *, device: torch.device | str = "auto"
) -> AutoencoderEvaluators:
    """LPIPS; and Inception, or the network trained on `train_data` (now, unless it is in the user's cache).

    Where no metrics are named, LPIPS is left out if its weights are not here; `UserError` where it is named.
    """
    needs = check_files(config)
    lpips = extractor = None
    if "perceptual_distance" in needs:
        lpips = lpips_distance(config.lpips_network, config.lpips_weights, device=device)
    if "features" in needs:
        extractor = prepare_evaluators(train_data, config.features(), device=device).extractor
    return AutoencoderEvaluators(extractor, lpips)


@torch.no_grad()
def evaluate_autoencoder(
    model: Autoencoder,
    data: ImageData,
    config: AutoencoderEvaluationConfig | None = None,
    *,
    evaluators: AutoencoderEvaluators | None = None,
    train_data: ImageData | None = None,
    loss: LossConfig | None = None,
    device: torch.device | str = "auto",
) -> EvaluationResult:
    """Measure on `num_images` of `data`, drawn by the seed, reconstructing from posterior means.

    `loss`, that of the training, implies the likelihood of iwae. `evaluators` default to those trained on
    `train_data`, which defaults to `data`. Errors are standard errors over images.
    """
    config = config or AutoencoderEvaluationConfig()
    names = plan_metrics(model, config, data.image_size)
    count = min(config.num_images, len(data))
    if count < 4:
        problem = f"{data.name}: {counted(count, 'image')} in its split {data.split}"
        raise UserError(problem, remedy="4 or more are needed")
    if data.image_size % model.factor:
        problem = f"not divisible by the autoencoder's {model.factor}"
        raise UserError(problem, setting="image_size", value=data.image_size)
    device = resolve_device(device)
    evaluation = AutoencoderEvaluation(model, data, config, loss=loss, device=device)
    metrics: list[AutoencoderMetric] = [autoencoder_metrics.get(name) for name in names]
    for metric in metrics:
        metric.check(evaluation)
    evaluators = evaluators or prepare_autoencoder_evaluators(config, train_data or data, device=device)
    model = model.to(device).eval()
    evaluation = replace(evaluation, model=model, evaluators=evaluators)
    metrics = [metric for metric in metrics if evaluators.provide(metric.info.needs)]
    batched = [metric for metric in metrics if "reconstructions" in metric.info.needs]
    metrics = batched + [metric for metric in metrics if metric not in batched]
    for metric in metrics:
        metric.start(evaluation)
    if batched:
        total = -(-count // config.batch_size)
        chosen = random_indices(len(data), count, config.seed)
        for images in progress(plain_batches(data, chosen, config.batch_size), "autoencoder (batches)", total=total):
            batch = ReconstructionStats(model, images.to(device))
            for metric in batched:
                metric.add(batch)
    figures = tuple(figure for metric in metrics for figure in metric.figures())
    manifest = _describe(model, data, config) | {"num_images": count}
    for metric in metrics:
        manifest |= metric.manifest()
    features = any("features" in metric.info.needs for metric in metrics)
    return EvaluationResult(figures, manifest, warnings=cautions(count, evaluators.extractor) if features else ())


def cautions(count: int, extractor: Extractor | None) -> tuple[str, ...]:
    """What to be careful about when rfid is quoted."""
    notes = []
    if extractor is not None and count < _SMALL:
        notes.append(f"N = {count}: the Frechet distance is biased; compare only figures of equal N")
    if extractor is not None and extractor.name != "inception":
        notes.append(f"features are {extractor.name}, not Inception: comparable only under this very name")
    return tuple(notes)


def _describe(model: Autoencoder, data: ImageData, config: AutoencoderEvaluationConfig) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "data": data.name,
        "split": data.split,
        "data_fingerprint": data.image_fingerprint,
        "image_size": data.image_size,
        "bottleneck": model.config.bottleneck,
        "reconstruction": "from the posterior mean or the chosen codes, clipped to [-1, 1]",
        "weights": "as published in vae/ (EMA)",
        "seed": config.seed,
        "batch_size": config.batch_size,
    }
