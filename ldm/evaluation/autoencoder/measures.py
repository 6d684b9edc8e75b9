"""The measures of an autoencoder, each fed batch by batch with held-out images and what the model made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from autoencoders import Autoencoder
from autoencoders.bottlenecks import gaussian_kl
from autoencoders.importance import standard_posterior
from autoencoders.losses.perceptual import Distance
from ldm.evaluation.features.extractors import Extractor, figure_name
from ldm.evaluation.metrics.frechet import Gaussian, frechet_distance
from ldm.evaluation.metrics.intervals import half_samples
from ldm.evaluation.metrics.latent_measures import (
    CodeStatistics,
    PosteriorMoments,
    code_statistics,
    prior_discrepancy,
    standard_error,
)
from ldm.evaluation.records import MetricValue

_PAIRS = 2000  # images whose latents are compared with the prior pair by pair
_HALVES = 50  # random halves of the images, whose distances scatter as that of all would


class ReconstructionStats:
    """A batch of images (B, 3, H, W) and what the model makes of them, each computed when first asked for."""

    def __init__(self, model: Autoencoder, images: Tensor) -> None:
        self.model, self.images = model, images

    @cached_property
    def restored(self) -> Tensor:
        """The images of the posterior's mean, or of the chosen codes, clipped to [-1, 1]."""
        return self.model.decode(self.model.encode(self.images).mean).float().clamp(-1, 1)

    @cached_property
    def codes(self) -> tuple[Tensor, ...]:
        """The codes (B, places) of each codebook."""
        config = self.model.config
        parts = config.num_quantizers if config.bottleneck in ("product_vq", "residual_vq") else 1
        maps = [each.to("cpu", torch.int32).flatten(1) for each in self.model.codes(self.images)]
        return tuple(level[:, part::parts] for level in maps for part in range(parts))

    @cached_property
    def posterior(self) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation (B, C, h, w) where the prior is N(0, 1), or None; see `standard_posterior`."""
        return standard_posterior(self.model, self.images)


class Measure(Protocol):
    """One metric."""

    def add(self, seen: ReconstructionStats) -> None:
        """Take in a batch."""

    def figures(self) -> tuple[MetricValue, ...]:
        """What was found, after the last batch."""

    def manifest(self) -> dict[str, Any]:
        """What the manifest is to say of it."""


class Quality:
    """Mean over images of a distance between images and reconstructions."""

    def __init__(self, metric: str, name: str, distance: Distance, higher_is_better: bool) -> None:
        self.metric, self.name, self.distance, self.higher = metric, name, distance, higher_is_better
        self.found: list[Tensor] = []

    def add(self, seen: ReconstructionStats) -> None:
        self.found.append(self.distance(seen.restored, seen.images).cpu().double())

    def figures(self) -> tuple[MetricValue, ...]:
        values = torch.cat(self.found)
        return (MetricValue(self.metric, self.name, float(values.mean()), standard_error(values), self.higher),)

    def manifest(self) -> dict[str, Any]:
        return {}


class ReconstructionFrechet:
    """Frechet distance of reconstructions from their originals; its error is the scatter over random halves of them."""

    def __init__(self, extractor: Extractor, seed: int) -> None:
        self.extractor, self.seed = extractor, seed
        self.real: list[Tensor] = []
        self.fake: list[Tensor] = []

    def add(self, seen: ReconstructionStats) -> None:
        self.real.append(self.extractor(seen.images).cpu())
        self.fake.append(self.extractor(seen.restored).cpu())

    def figures(self) -> tuple[MetricValue, ...]:
        real, fake = torch.cat(self.real), torch.cat(self.fake)
        halves = half_samples(len(real), _HALVES if real.shape[1] <= 512 else 0, seed=self.seed)  # of Inception's slow
        scatter = torch.tensor([_distance(real[rows], fake[rows]) for rows in halves], dtype=torch.float64)
        error = float(scatter.std()) if halves else None
        name = f"r{figure_name('fid', self.extractor)}"
        return (MetricValue("rfid", name, _distance(real, fake), error),)

    def manifest(self) -> dict[str, Any]:
        extractor = self.extractor
        return {"extractor": extractor.name, "dim": extractor.dim, "preprocessing": extractor.preprocessing}


def _distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance(Gaussian.fit(a), Gaussian.fit(b))


class _Codes:
    """Codes of the whole set, codebook by codebook."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.found: list[tuple[Tensor, ...]] = []

    def add(self, seen: ReconstructionStats) -> None:
        self.found.append(seen.codes)

    def statistics(self) -> list[CodeStatistics]:
        """In the order of levels, and within a level of its codebooks."""
        books = [torch.cat(parts) for parts in zip(*self.found, strict=True)]
        each = len(books) // len(self.sizes)
        return [code_statistics(codes, self.sizes[number // each]) for number, codes in enumerate(books)]


class CodebookUse(_Codes):
    """The share of the codes that are in use, and their perplexity."""

    def figures(self) -> tuple[MetricValue, ...]:
        books = self.statistics()
        share = sum(book.used for book in books) / sum(book.size for book in books)
        found = [MetricValue("codebook/used", f"codes used[of {_sizes(books)}]", share, higher_is_better=True)]
        for number, book in enumerate(books):
            tail, name = (f"/{number}", f"perplexity[{number}]") if len(books) > 1 else ("", "perplexity")
            found.append(MetricValue(f"codebook/perplexity{tail}", name, book.perplexity, book.perplexity_error, True))
            if tail:
                found.append(MetricValue(f"codebook/used{tail}", f"codes used[{number}]", book.used / book.size))
        return tuple(found)

    def manifest(self) -> dict[str, Any]:
        return {"codebooks": [book.size for book in self.statistics()]}


def _sizes(books: list[CodeStatistics]) -> str:
    sizes = [book.size for book in books]
    return f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 < len(sizes) else " + ".join(map(str, sizes))


class Rate:
    """Bits a pixel: the entropy of the codes, all codebooks added up, or the KL of the posterior from the prior.

    The entropy is over the whole set, as if all places were independent and alike. A dVAE has both.
    """

    def __init__(self, sizes: tuple[int, ...], pixels: int, seed: int) -> None:
        self.codes = _Codes(sizes) if sizes else None
        self.pixels, self.draws = pixels, torch.Generator().manual_seed(seed)
        self.divergence: list[Tensor] = []
        self.of_batches = False

    def add(self, seen: ReconstructionStats) -> None:
        if self.codes is not None:
            self.codes.add(seen)
        if seen.posterior is not None:
            mean, std = (each.double() if each.device.type != "mps" else each for each in seen.posterior)
            self.divergence.append(gaussian_kl(mean, 2 * std.log()).cpu().double())
        elif self.codes is None or seen.model.config.bottleneck == "gumbel":
            kl = seen.model(seen.images, generator=self.draws).losses["kl"]
            self.divergence.append(kl.cpu().double().expand(len(seen.images)))
            self.of_batches = True  # the scatter over images is not known

    def figures(self) -> tuple[MetricValue, ...]:
        found = []
        if self.codes is not None:
            bits = torch.stack([book.surprise for book in self.codes.statistics()]).sum(0)
            found.append(self._figure("rate", "bits/pixel[entropy of codes]", bits, True))
        if self.divergence:
            bits = torch.cat(self.divergence) / math.log(2)
            metric = "rate/kl" if found else "rate"
            found.append(self._figure(metric, "bits/pixel[KL]", bits, not self.of_batches))
        return tuple(found)

    def _figure(self, metric: str, name: str, bits: Tensor, scatter: bool) -> MetricValue:
        error = standard_error(bits) / self.pixels if scatter else None
        return MetricValue(metric, name, float(bits.mean()) / self.pixels, error)

    def manifest(self) -> dict[str, Any]:
        return {"rate_over": f"{self.pixels} pixels an image"}


class ActiveUnits:
    """How many numbers of the latents tell images apart."""

    def __init__(self) -> None:
        self.moments = PosteriorMoments()

    def add(self, seen: ReconstructionStats) -> None:
        assert seen.posterior is not None
        self.moments.add(*seen.posterior)

    def figures(self) -> tuple[MetricValue, ...]:
        total = len(self.moments.variance_of_means())
        return (MetricValue("active_units", f"active units[of {total}]", float(self.moments.active_units())),)

    def manifest(self) -> dict[str, Any]:
        return {"active_units_are": "numbers of the latents whose posterior mean has a variance above 0.01 over images"}


class AggregatePosterior(ActiveUnits):
    """How far the latents of all images together are from the prior: in two moments, and by a kernel."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draws = torch.Generator().manual_seed(seed)
        self.latents: list[Tensor] = []
        self.kept = 0

    def add(self, seen: ReconstructionStats) -> None:
        super().add(seen)
        if self.kept < _PAIRS:
            assert seen.posterior is not None
            mean, std = (each.float().cpu() for each in seen.posterior)
            self.latents.append((mean + std * torch.randn(mean.shape, generator=self.draws)).flatten(1))
            self.kept += len(mean)

    def figures(self) -> tuple[MetricValue, ...]:
        latents = torch.cat(self.latents)[:_PAIRS]
        mmd, error = prior_discrepancy(latents, torch.randn(latents.shape, generator=self.draws))
        divergence = float(self.moments.divergence().mean())
        return (
            MetricValue("aggregate_posterior/kl", "KL[moments of q(z), N(0, I)] nats/number", divergence),
            MetricValue("aggregate_posterior/mmd", "MMD^2[q(z), N(0, I)]", mmd, error),
        )

    def manifest(self) -> dict[str, Any]:
        kernel = "sum of c / (c + |x - y|^2) over c = 2 D s, s in 0.1, 0.2, 0.5, 1, 2, 5, 10"
        return {"aggregate_posterior": {"mmd_kernel": kernel, "mmd_images": min(self.kept, _PAIRS)}}


@dataclass(frozen=True)
class AutoencoderEvaluators:
    """What measures: features for rfid, and a perceptual distance; None where none is asked for."""

    extractor: Extractor | None = None
    lpips: Distance | None = None
