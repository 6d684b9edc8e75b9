"""What to measure of an autoencoder, on how many held-out images, with which features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.registry import autoencoder_metrics as registry
from ldm.runtime.errors import LARGEST_BATCH, LARGEST_SEED, TINY, UserError, at_least, in_range
from ldm.runtime.values import check_values


@dataclass(frozen=True)
class AutoencoderEvaluationConfig:
    """What to measure of an autoencoder, on how many held-out images, with which features."""

    metrics: tuple[str, ...] = ()
    """psnr, ssim, lpips; rfid (Frechet distance of reconstructions from originals); rate (bits a pixel: the entropy of
    the codes over all images, or the KL); codebook (use and perplexity); active_units and aggregate_posterior (of a
    Gaussian posterior); iwae (importance-weighted bound on log p(x)). None given: all that the model has, but for iwae,
    and for lpips where its weights are not here."""
    num_images: int = 10000
    """Held-out images to measure on, drawn at random if there are more."""
    seed: int = 0
    """Seed of the choice of images, of posterior and prior draws, and of the halves for the error of rfid."""
    batch_size: int = 64
    """Images at a time."""
    extractor: Literal["auto", "inception", "trained"] = "auto"
    """Features of rfid: inception (needs its weights; only then the figure is called rFID), trained (a small network
    trained on the data set, named in the figure), auto: inception where its weights are found."""
    inception_weights: str | None = None
    """The file inception-2015-12-05.pt; default: where clean-fid keeps it."""
    download_inception: bool = False
    """Download the Inception weights (96 MB) to where clean-fid keeps them, if they are not there."""
    lpips_network: Literal["vgg", "alex"] = "vgg"
    """lpips: the network whose features are compared."""
    lpips_weights: str | None = None
    """lpips: file with the weights of that network; default: torch hub's cache. Nothing is downloaded."""
    iwae_samples: tuple[int, ...] = (1, 8, 64)
    """iwae: numbers K of posterior draws under the logarithm; 1 is the evidence bound. Each divides the largest."""
    iwae_images: int = 128
    """iwae: images to measure it on, drawn at random."""
    likelihood_scale: float | None = None
    """iwae: scale of p(x | z), for images in [-1, 1]: b of a Laplace (l1), s of a Gaussian (l2); default: that of which
    the training loss is the evidence bound, b = kl_weight, s = sqrt(kl_weight / 2)."""

    def __post_init__(self) -> None:
        check_values(self)
        for name in self.metrics:
            registry.check(name)
        at_least(self, num_images=4, iwae_images=2)
        in_range(self, seed=(0, LARGEST_SEED), batch_size=(1, LARGEST_BATCH), likelihood_scale=(TINY, 1e6))
        in_range(self, iwae_samples=(1, 2**20))
        self.features()  # refuses an extractor that is none
        largest = max(self.iwae_samples, default=0)
        if not self.iwae_samples or min(self.iwae_samples) < 1 or any(largest % count for count in self.iwae_samples):
            given = " ".join(map(str, self.iwae_samples)) or "none"
            problem = f"expected numbers from 1 that divide the largest of them, got {given}"
            raise UserError(problem, setting="iwae_samples")

    def features(self) -> EvaluationConfig:
        """The settings of the extractor of rfid."""
        names = ("seed", "batch_size", "extractor", "inception_weights", "download_inception")
        return EvaluationConfig(metrics=("fid",), judge=False, **{name: getattr(self, name) for name in names})
