"""What a training asks of frozen networks: a perceptual distance for its loss, and features for a Frechet distance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from autoencoders.losses.perceptual import Distance, PerceptualConfig
from ldm.data import ImageData
from ldm.evaluation.features.extractors import Extractor, figure_name, inception_extractor, trained_extractor
from ldm.evaluation.features.train_network import trained_network
from ldm.evaluation.metrics.frechet import Gaussian, frechet_distance
from ldm.evaluation.metrics.perceptual import TrainedFeatures, lpips_distance


def perceptual_distance(
    config: PerceptualConfig, data: ImageData, device: torch.device
) -> tuple[Distance | None, dict[str, Any]]:
    """The distance that the settings name, frozen, and what a resumed run must share of it; (None, {}) for none.

    `UserError` where LPIPS has no weights. The network of the data set is trained now unless it is in the cache.
    """
    if not config.active:
        return None, {}
    if config.perceptual == "lpips":
        return lpips_distance(config.lpips_network, config.lpips_weights, device=device), config.facts()
    network, _ = trained_network(data, device=device)
    return TrainedFeatures(network), {**config.facts(), "network": network.fingerprint()[:16]}


class FrechetMeasure:
    """The Frechet distance between held-out images and pictures: Inception's features where its weights are, else
    those of a network that was trained on the data; the name tells which."""

    def __init__(self, data: ImageData, device: torch.device) -> None:
        self._data, self._device = data, device
        self._extractor: Extractor | None = None

    @property
    def extractor(self) -> Extractor:
        """Made when it is first needed: a run that is refused should not wait for its training."""
        if self._extractor is None:
            found = inception_extractor(device=self._device)
            self._extractor = found or trained_extractor(self._data, device=self._device)
        return self._extractor

    def __call__(self, prefix: str, pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """{name: distance} of batches (images, pictures), (B, 3, H, W) in [-1, 1]; "r" makes FID rFID."""
        real, made = zip(*((self.extractor(a), self.extractor(b.clamp(-1, 1))) for a, b in pairs), strict=True)
        distance = frechet_distance(Gaussian.fit(torch.cat(real)), Gaussian.fit(torch.cat(made)))
        return {prefix + figure_name("fid", self.extractor): distance}
