"""How close reconstructions are to their originals: PSNR, SSIM, LPIPS, and the Frechet distance of the two sets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoencoders import Autoencoder
from autoencoders.losses.perceptual import Distance
from ldm.evaluation.autoencoder.base import AutoencoderEvaluation, AutoencoderMetric, ReconstructionStats
from ldm.evaluation.autoencoder.config import AutoencoderEvaluationConfig
from ldm.evaluation.features.extractors import figure_name
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.intervals import half_samples
from ldm.evaluation.metrics.frechet import frechet_distance
from ldm.evaluation.metrics.image_quality import psnr, ssim
from ldm.evaluation.metrics.latent_measures import standard_error
from ldm.evaluation.metrics.perceptual import backbone_file
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import autoencoder_metrics
from ldm.runtime.errors import UserError

_HALVES = 50  # random halves of the images, whose distances scatter as that of all would
_SMALLEST_SSIM = 11  # pixels: the window
_SMALLEST_LPIPS = {"vgg": 16, "alex": 31}  # pixels that are still one after all poolings


class Quality(AutoencoderMetric):
    """Mean over images of a distance between images and reconstructions."""

    title = ""
    higher_is_better = True
    distance: Distance  # one number an image (B,)

    def start(self, evaluation: AutoencoderEvaluation) -> None:
        super().start(evaluation)
        self.values: list[Tensor] = []

    def add(self, batch: ReconstructionStats) -> None:
        self.values.append(self.distance(batch.restored, batch.images).cpu().double())

    def figures(self) -> tuple[MetricValue, ...]:
        values, title = torch.cat(self.values), self.title or self.name.upper()
        return (MetricValue(self.name, title, float(values.mean()), standard_error(values), self.higher_is_better),)


@autoencoder_metrics.register("psnr")
class Psnr(Quality):
    distance = staticmethod(psnr)


@autoencoder_metrics.register("ssim")
class Ssim(Quality):
    distance = staticmethod(ssim)

    def unavailable(self, model: Autoencoder, image_size: int, config: AutoencoderEvaluationConfig) -> str | None:
        return f"needs images of {_SMALLEST_SSIM} pixels or more" if image_size < _SMALLEST_SSIM else None


@autoencoder_metrics.register("lpips")
class Lpips(Quality):
    higher_is_better = False

    def unavailable(self, model: Autoencoder, image_size: int, config: AutoencoderEvaluationConfig) -> str | None:
        smallest = _SMALLEST_LPIPS[config.lpips_network]
        return f"{config.lpips_network} needs images of {smallest} pixels or more" if image_size < smallest else None

    def check_files(self, config: AutoencoderEvaluationConfig) -> bool:
        try:
            backbone_file(config.lpips_network, config.lpips_weights)
        except UserError as error:
            if self.name in config.metrics or config.lpips_weights is not None:
                raise self.refusal(str(error)) from None
            return False
        return True

    def start(self, evaluation: AutoencoderEvaluation) -> None:
        super().start(evaluation)
        assert evaluation.evaluators.lpips is not None
        self.distance, self.title = evaluation.evaluators.lpips, f"LPIPS[{evaluation.config.lpips_network}]"


@autoencoder_metrics.register("rfid")
class ReconstructionFrechet(AutoencoderMetric):
    """Frechet distance of reconstructions from their originals; its error is the scatter over random halves of them."""

    def start(self, evaluation: AutoencoderEvaluation) -> None:
        assert evaluation.evaluators.extractor is not None
        self.extractor, self.seed = evaluation.evaluators.extractor, evaluation.config.seed
        self.real: list[Tensor] = []
        self.fake: list[Tensor] = []

    def add(self, batch: ReconstructionStats) -> None:
        self.real.append(self.extractor(batch.images).cpu())
        self.fake.append(self.extractor(batch.restored).cpu())

    def figures(self) -> tuple[MetricValue, ...]:
        real, fake = torch.cat(self.real), torch.cat(self.fake)
        halves = half_samples(len(real), _HALVES if real.shape[1] <= 512 else 0, seed=self.seed)  # of Inception's slow
        scatter = torch.tensor([_distance(real[rows], fake[rows]) for rows in halves], dtype=torch.float64)
        error = float(scatter.std()) if halves else None
        name = f"r{figure_name('fid', self.extractor)}"
        return (MetricValue(self.name, name, _distance(real, fake), error),)

    def manifest(self) -> dict[str, Any]:
        extractor = self.extractor
        return {"extractor": extractor.name, "dim": extractor.dim, "preprocessing": extractor.preprocessing}


def _distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance(Gaussian.fit(a), Gaussian.fit(b))
