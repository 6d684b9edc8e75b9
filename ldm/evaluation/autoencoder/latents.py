"""What the latents of an autoencoder cost and hold: bits a pixel, use of the codebooks, units, aggregate posterior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from autoencoders import Autoencoder
from autoencoders.bottlenecks.gaussian import gaussian_kl
from ldm.evaluation.autoencoder.base import AutoencoderEvaluation, AutoencoderMetric, ReconstructionStats
from ldm.evaluation.autoencoder.config import AutoencoderEvaluationConfig
from ldm.evaluation.metrics.latent_measures import (
    CodeStatistics,
    PosteriorMoments,
    code_statistics,
    prior_discrepancy,
    standard_error,
)
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import autoencoder_metrics

_PAIRS = 2000  # images whose latents are compared with the prior pair by pair


class _Codes:
    """Codes of the whole set, codebook by codebook."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.batches: list[tuple[Tensor, ...]] = []

    def statistics(self) -> list[CodeStatistics]:
        """In the order of levels, and within a level of its codebooks."""
        books = [torch.cat(batches) for batches in zip(*self.batches, strict=True)]
        a_level = len(books) // len(self.sizes)
        return [code_statistics(codes, self.sizes[number // a_level]) for number, codes in enumerate(books)]


@autoencoder_metrics.register("codebook")
class CodebookUse(AutoencoderMetric):
    """The share of the codes that are in use, and their perplexity."""

    def start(self, evaluation: AutoencoderEvaluation) -> None:
        self.codes = _Codes(evaluation.model.config.codebook_sizes)

    def add(self, batch: ReconstructionStats) -> None:
        self.codes.batches.append(batch.codes)

    def figures(self) -> tuple[MetricValue, ...]:
        books = self.codes.statistics()
        share = sum(book.used for book in books) / sum(book.size for book in books)
        values = [MetricValue("codebook/used", f"codes used[of {_sizes(books)}]", share, higher_is_better=True)]
        for number, book in enumerate(books):
            tail, name = (f"/{number}", f"perplexity[{number}]") if len(books) > 1 else ("", "perplexity")
            values.append(MetricValue(f"codebook/perplexity{tail}", name, book.perplexity, book.perplexity_error, True))
            if tail:
                values.append(MetricValue(f"codebook/used{tail}", f"codes used[{number}]", book.used / book.size))
        return tuple(values)

    def manifest(self) -> dict[str, Any]:
        return {"codebooks": [book.size for book in self.codes.statistics()]}


def _sizes(books: list[CodeStatistics]) -> str:
    sizes = [book.size for book in books]
    return f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 < len(sizes) else " + ".join(map(str, sizes))


@autoencoder_metrics.register("rate")
class BitsPerPixel(AutoencoderMetric):
    """The entropy of the codes, all codebooks added up, or the KL of the posterior from the prior.

    The entropy is over the whole set, as if all positions were independent and alike. A dVAE has both.
    """

    def unavailable(self, model: Autoencoder, image_size: int, config: AutoencoderEvaluationConfig) -> str | None:
        if model.config.codebook_sizes or model.has_prior:
            return None
        return f"bottleneck {model.config.bottleneck} has neither codes nor a prior, so no finite rate"

    def start(self, evaluation: AutoencoderEvaluation) -> None:
        sizes = evaluation.model.config.codebook_sizes
        self.codes = _Codes(sizes) if sizes else None
        self.pixels = evaluation.data.image_size**2
        self.generator = torch.Generator().manual_seed(evaluation.config.seed)
        self.divergence: list[Tensor] = []
        self.of_batches = False

    def add(self, batch: ReconstructionStats) -> None:
        if self.codes is not None:
            self.codes.batches.append(batch.codes)
        if batch.posterior is not None:
            mean, std = (x.double() if x.device.type != "mps" else x for x in batch.posterior)
            self.divergence.append(gaussian_kl(mean, 2 * std.log()).cpu().double())
        elif self.codes is None or batch.model.has_prior:
            kl = batch.model(batch.images, generator=self.generator).losses["kl"]
            self.divergence.append(kl.cpu().double().expand(len(batch.images)))
            self.of_batches = True  # the scatter over images is not known

    def figures(self) -> tuple[MetricValue, ...]:
        values = []
        if self.codes is not None:
            bits = torch.stack([book.surprise for book in self.codes.statistics()]).sum(0)
            values.append(self._figure("rate", "bits/pixel[entropy of codes]", bits, True))
        if self.divergence:
            bits = torch.cat(self.divergence) / math.log(2)
            metric = "rate/kl" if values else "rate"
            values.append(self._figure(metric, "bits/pixel[KL]", bits, not self.of_batches))
        return tuple(values)

    def _figure(self, metric: str, name: str, bits: Tensor, scatter: bool) -> MetricValue:
        error = standard_error(bits) / self.pixels if scatter else None
        return MetricValue(metric, name, float(bits.mean()) / self.pixels, error)

    def manifest(self) -> dict[str, Any]:
        return {"rate_over": f"{self.pixels} pixels an image"}


@autoencoder_metrics.register("active_units")
class ActiveUnits(AutoencoderMetric):
    """How many numbers of the latents tell images apart."""

    def start(self, evaluation: AutoencoderEvaluation) -> None:
        self.moments = PosteriorMoments()

    def add(self, batch: ReconstructionStats) -> None:
        assert batch.posterior is not None
        self.moments.add(*batch.posterior)

    def figures(self) -> tuple[MetricValue, ...]:
        total = len(self.moments.variance_of_means())
        return (MetricValue("active_units", f"active units[of {total}]", float(self.moments.active_units())),)

    def manifest(self) -> dict[str, Any]:
        return {"active_units_are": "numbers of the latents whose posterior mean has a variance above 0.01 over images"}


@autoencoder_metrics.register("aggregate_posterior")
class AggregatePosterior(ActiveUnits):
    """How far the latents of all images together are from the prior: in two moments, and by a kernel."""

    def start(self, evaluation: AutoencoderEvaluation) -> None:
        super().start(evaluation)
        self.generator = torch.Generator().manual_seed(evaluation.config.seed)
        self.latents: list[Tensor] = []
        self.count = 0

    def add(self, batch: ReconstructionStats) -> None:
        super().add(batch)
        if self.count < _PAIRS:
            assert batch.posterior is not None
            mean, std = (x.float().cpu() for x in batch.posterior)
            self.latents.append((mean + std * torch.randn(mean.shape, generator=self.generator)).flatten(1))
            self.count += len(mean)

    def figures(self) -> tuple[MetricValue, ...]:
        latents = torch.cat(self.latents)[:_PAIRS]
        mmd, error = prior_discrepancy(latents, torch.randn(latents.shape, generator=self.generator))
        divergence = float(self.moments.divergence().mean())
        return (
            MetricValue("aggregate_posterior/kl", "KL[moments of q(z), N(0, I)] nats/number", divergence),
            MetricValue("aggregate_posterior/mmd", "MMD^2[q(z), N(0, I)]", mmd, error),
        )

    def manifest(self) -> dict[str, Any]:
        kernel = "sum of c / (c + |x - y|^2) over c = 2 D s, s in 0.1, 0.2, 0.5, 1, 2, 5, 10"
        return {"aggregate_posterior": {"mmd_kernel": kernel, "mmd_images": min(self.count, _PAIRS)}}
