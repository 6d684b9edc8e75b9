"""Held-out images' log-likelihood under an autoencoder with a prior."""

from __future__ import annotations

import math
from typing import Any

import torch

from autoencoders import Autoencoder, LossConfig
from autoencoders.importance import (
    Likelihood,
    LogitLaplaceLikelihood,
    PixelLikelihood,
    implied_likelihood,
    importance_bound,
    log_weights,
)
from ldm.data.selection import random_indices
from ldm.evaluation.autoencoder.base import AutoencoderEvaluation, AutoencoderMetric
from ldm.evaluation.metrics.latent_measures import standard_error
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import autoencoder_metrics
from ldm.runtime.errors import UserError
from ldm.runtime.progress import progress


@autoencoder_metrics.register("iwae")
class ImportanceBound(AutoencoderMetric):
    def check(self, evaluation: AutoencoderEvaluation) -> None:
        self.likelihood = likelihood_of(evaluation.model, evaluation.loss, evaluation.config.likelihood_scale)

    def figures(self) -> tuple[MetricValue, ...]:
        """log p(x) of images of the data, in nats an image and bits a dimension, for each number of draws.

        It is a density of images in [-1, 1], taken at 8-bit values without dequantisation. The draws of an image depend
        on (seed, index) and the batch size.
        """
        model, data, config = self.evaluation.model, self.evaluation.data, self.evaluation.config
        count, most = min(config.iwae_images, len(data)), max(config.iwae_samples)
        rows = []
        for index in progress(random_indices(len(data), count, config.seed), "importance-weighted bound (images)"):
            draws = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
            image = data[index].image.to(self.evaluation.device)
            rows.append(log_weights(model, image, self.likelihood, most, draws, chunk=config.batch_size))
        weights = torch.stack(rows)  # (N, S)
        numbers = data[0].image.numel()
        figures: list[MetricValue] = []
        for k in sorted(set(config.iwae_samples)):
            nats = importance_bound(weights, k)  # (N,)
            value, error, to_bits = float(nats.mean()), standard_error(nats), 1 / (numbers * math.log(2))
            bits, bits_error = -value * to_bits, error * to_bits
            figures += [
                MetricValue(f"iwae/{k}", f"log p(x) >= [K = {k}] nats", value, error, higher_is_better=True),
                MetricValue(f"iwae/{k}/bits", f"bits/dim[density, K = {k}]", bits, bits_error),
            ]
        self.details = {
            "images": count,
            "samples": list(config.iwae_samples),
            "likelihood": self.likelihood.kind,
            "likelihood_scale": self.likelihood.scale,
            "dimensions": numbers,
            "density_of": "images in [-1, 1], at their 8-bit values",
        }
        return tuple(figures)

    def manifest(self) -> dict[str, Any]:
        return {"iwae": self.details}


def likelihood_of(model: Autoencoder, loss: LossConfig | None, scale: float | None) -> Likelihood:
    """The likelihood that the training implies, `scale` in place of its own if given; `UserError` without either."""
    try:
        if loss is None and scale is None and model.config.decoder_output == "logit_laplace":
            return LogitLaplaceLikelihood()
        if loss is not None:
            return implied_likelihood(loss, scale)
        if scale is not None:
            return PixelLikelihood("gaussian", scale)
    except ValueError as error:
        raise UserError(f"{error} (`likelihood_scale`)", setting="metrics", value="iwae") from None
    remedy = "give `likelihood_scale`, the standard deviation of a Gaussian"
    problem = "without the config.yaml of a run its likelihood is not known"
    raise UserError(problem, remedy=remedy, setting="metrics", value="iwae")
