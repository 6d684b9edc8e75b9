"""Evaluate an autoencoder on held-out images: how well it restores them, what its latents cost, what they say."""

from __future__ import annotations

from typing import Any

import torch

from autoencoders import Autoencoder, LossConfig
from ldm.data.dataset import ImageData
from ldm.data.selection import plain_batches, random_indices
from ldm.evaluation.autoencoder.config import AUTOENCODER_METRICS, AutoencoderEvaluationConfig, why_not
from ldm.evaluation.autoencoder.importance import likelihood_of, measure_importance
from ldm.evaluation.autoencoder.measures import (
    ActiveUnits,
    AggregatePosterior,
    AutoencoderEvaluators,
    CodebookUse,
    Distance,
    Measure,
    Quality,
    Rate,
    ReconstructionFrechet,
    ReconstructionStats,
)
from ldm.evaluation.evaluators import prepare_evaluators
from ldm.evaluation.features.extractors import Extractor
from ldm.evaluation.metrics.image_quality import psnr, ssim
from ldm.evaluation.metrics.perceptual import backbone_file, lpips_distance
from ldm.evaluation.records import EvaluationResult
from ldm.runtime.errors import UserError
from ldm.runtime.progress import progress

_SMALL = 10_000  # below so many images the Frechet distance's bias is larger than most differences worth telling


def plan_metrics(model: Autoencoder, config: AutoencoderEvaluationConfig, image_size: int) -> tuple[str, ...]:
    """The metrics to measure: those asked for, else all that this model has but for iwae.

    `UserError` for one that is asked for by name and that this model has not.
    """
    reasons = {name: why_not(name, model, image_size, config) for name in AUTOENCODER_METRICS}
    for name in config.metrics:
        if reasons[name] is not None:
            raise UserError(f"{reasons[name]}", setting="metrics", value=name)
    found = config.metrics or tuple(name for name, reason in reasons.items() if reason is None and name != "iwae")
    return tuple(dict.fromkeys(found))


def prepare_autoencoder_evaluators(
    config: AutoencoderEvaluationConfig, train_data: ImageData, *, device: torch.device | str = "cpu"
) -> AutoencoderEvaluators:
    """LPIPS; and Inception, or the network trained on `train_data` (now, unless it is in the user's cache).

    Where no metrics are asked for by name, LPIPS is left out if its weights are not here; `UserError` where it is.
    """
    wanted = config.metrics or ("lpips", "rfid")
    lpips = None
    if "lpips" in wanted:
        lpips = _lpips(config, device)
    extractor = prepare_evaluators(train_data, config.features(), device=device).extractor if "rfid" in wanted else None
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
    device: torch.device | str = "cpu",
) -> EvaluationResult:
    """Measure on `num_images` of `data`, drawn by the seed, reconstructing from posterior means.

    `loss`, that of the training, implies the likelihood of iwae. `evaluators` default to those trained on
    `train_data`, which defaults to `data`. Errors are standard errors over images.
    """
    config = config or AutoencoderEvaluationConfig()
    metrics = plan_metrics(model, config, data.image_size)
    count = min(config.num_images, len(data))
    if count < 4:
        raise UserError(f"{data.name}: {count} images in its split {data.split}", remedy="4 or more are needed")
    if data.image_size % model.factor:
        raise UserError(
            f"not divisible by the autoencoder's {model.factor}", setting="image_size", value=data.image_size
        )
    likelihood = (
        likelihood_of(model, loss, config.likelihood_scale) if "iwae" in metrics else None
    )  # refused before work
    evaluators = evaluators or prepare_autoencoder_evaluators(config, train_data or data, device=device)
    model = model.to(device).eval()
    measures = _measures(metrics, model, data, config, evaluators)
    manifest = _describe(model, data, config) | {"num_images": count}
    if measures:
        total = -(-count // config.batch_size)
        chosen = random_indices(len(data), count, config.seed)
        for images in progress(plain_batches(data, chosen, config.batch_size), "autoencoder (batches)", total=total):
            seen = ReconstructionStats(model, images.to(device))
            for measure in measures:
                measure.add(seen)
    figures = [figure for measure in measures for figure in measure.figures()]
    for measure in measures:
        manifest |= measure.manifest()
    if likelihood is not None:
        found, facts = measure_importance(model, data, config, likelihood, device=device)
        figures += found
        manifest["iwae"] = facts
    warnings = cautions(count, evaluators.extractor) if "rfid" in metrics else ()
    return EvaluationResult(tuple(figures), manifest, warnings=warnings)


def cautions(count: int, extractor: Extractor | None) -> tuple[str, ...]:
    """What to be careful about when rfid is quoted."""
    found = []
    if extractor is not None and count < _SMALL:
        found.append(f"N = {count}: the Frechet distance is biased; compare only figures of equal N")
    if extractor is not None and extractor.name != "inception":
        found.append(f"features are {extractor.name}, not Inception: comparable only under this very name")
    return tuple(found)


def check_lpips(config: AutoencoderEvaluationConfig) -> bool:
    """Whether LPIPS can be measured; `UserError` where it was asked for, or its weights were named, and it cannot."""
    try:
        backbone_file(config.lpips_network, config.lpips_weights)
    except UserError as error:
        if "lpips" in config.metrics or config.lpips_weights is not None:
            raise UserError(f"{error}", setting="metrics", value="lpips") from None
        return False
    return True


def _lpips(config: AutoencoderEvaluationConfig, device: torch.device | str) -> Distance | None:
    if not check_lpips(config):
        return None
    return lpips_distance(config.lpips_network, config.lpips_weights, device=device)


def _measures(
    metrics: tuple[str, ...],
    model: Autoencoder,
    data: ImageData,
    config: AutoencoderEvaluationConfig,
    evaluators: AutoencoderEvaluators,
) -> list[Measure]:
    sizes, found = model.config.codebook_sizes, list[Measure]()
    for name in metrics:
        if name in ("psnr", "ssim"):
            found.append(Quality(name, name.upper(), psnr if name == "psnr" else ssim, higher_is_better=True))
        elif name == "lpips" and evaluators.lpips is not None:
            found.append(Quality(name, f"LPIPS[{config.lpips_network}]", evaluators.lpips, higher_is_better=False))
        elif name == "rfid" and evaluators.extractor is not None:
            found.append(ReconstructionFrechet(evaluators.extractor, config.seed))
        elif name == "rate":
            found.append(Rate(sizes, data.image_size**2, config.seed))
        elif name == "codebook":
            found.append(CodebookUse(sizes))
        elif name == "active_units":
            found.append(ActiveUnits())
        elif name == "aggregate_posterior":
            found.append(AggregatePosterior(config.seed))
    return found


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
