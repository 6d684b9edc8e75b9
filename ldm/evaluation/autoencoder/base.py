"""What a metric of an autoencoder is made of: batches of reconstructions go in, figures come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from autoencoders import Autoencoder, LossConfig
from autoencoders.bottlenecks import bottlenecks
from autoencoders.bottlenecks.gaussian import Gaussian
from autoencoders.importance import has_density, standard_posterior
from autoencoders.losses.perceptual import Distance
from ldm.data.dataset import ImageData
from ldm.evaluation.autoencoder.config import AutoencoderEvaluationConfig
from ldm.evaluation.features.extractors import Extractor
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import RegisteredMetric


@dataclass(frozen=True)
class AutoencoderEvaluators:
    """What metrics are measured by: features, and a perceptual distance; None where not needed or not there."""

    extractor: Extractor | None = None
    lpips: Distance | None = None

    def provide(self, needs: frozenset[str]) -> bool:
        """Whether nothing is missing of what a metric needs."""
        missing = {"features": self.extractor is None, "perceptual_distance": self.lpips is None}
        return not any(missing.get(need, False) for need in needs)


@dataclass(frozen=True)
class AutoencoderEvaluation:
    """What is evaluated, on which data and by what."""

    model: Autoencoder
    data: ImageData
    config: AutoencoderEvaluationConfig
    evaluators: AutoencoderEvaluators = field(default_factory=AutoencoderEvaluators)
    loss: LossConfig | None = None
    device: torch.device | str = "cpu"


class ReconstructionStats:
    """A batch of images (B, 3, H, W) and what the model makes of them, each computed at its first use."""

    def __init__(self, model: Autoencoder, images: Tensor) -> None:
        self.model, self.images = model, images

    @cached_property
    def restored(self) -> Tensor:
        """The images of the posterior's mean, or of the chosen codes, clipped to [-1, 1]."""
        return self.model.decode(self.model.encode(self.images).mean).float().clamp(-1, 1)

    @cached_property
    def codes(self) -> tuple[Tensor, ...]:
        """The codes (B, positions) of each codebook."""
        books = self.model.config.options.indices_per_position(self.model.config)
        levels = [level.to("cpu", torch.int32).flatten(1) for level in self.model.codes(self.images)]
        return tuple(level[:, book::books] for level in levels for book in range(books))

    @cached_property
    def posterior(self) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation (B, C, h, w) where the prior is N(0, 1), or None; see `standard_posterior`."""
        return standard_posterior(self.model, self.images)


class AutoencoderMetric(RegisteredMetric):
    """One metric, by the name that it is registered under; an instance measures once."""

    def unavailable(self, model: Autoencoder, image_size: int, config: AutoencoderEvaluationConfig) -> str | None:
        """Why this model cannot have the figure, or None where it can."""
        bottleneck, needs = model.config.bottleneck, self.info.needs
        if "codes" in needs and not model.config.codebook_sizes:
            return f"bottleneck {bottleneck} has no codes"
        if "posterior" in needs and not isinstance(model.quantize, Gaussian):
            return f"bottleneck {bottleneck} has no Gaussian posterior under a standard normal prior"
        if "density" in needs and not has_density(model):
            others = ", ".join(name for name, options in bottlenecks(plugins=False).items() if options.has_density)
            return f"bottleneck {bottleneck} has no density of its latents, so no log p(x); {others} have"
        return None

    def check_files(self, config: AutoencoderEvaluationConfig) -> bool:
        """Whether the files that it needs are there; `UserError` where it is named, or they are, and they are not."""
        return True

    def check(self, evaluation: AutoencoderEvaluation) -> None:
        """`UserError`, before any work, for what cannot be measured."""

    def start(self, evaluation: AutoencoderEvaluation) -> None:
        """Before the first batch."""
        self.evaluation = evaluation

    def add(self, batch: ReconstructionStats) -> None:
        """Take in a batch; of a metric that needs "reconstructions"."""
        raise NotImplementedError

    def figures(self) -> tuple[MetricValue, ...]:
        """The values, after the last batch."""
        raise NotImplementedError

    def manifest(self) -> dict[str, Any]:
        """What the values hold for, after `figures`."""
        return {}
