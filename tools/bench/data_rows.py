"""Latents from the cache against encoding and decoding anew; the Frechet distance against clean-fid's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from autoencoders import Autoencoder
from ldm.data.config import DataConfig
from ldm.data.latent_cache import encode_latents
from ldm.data.open import open_data
from ldm.data.shapes import ShapesData
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.metrics.frechet import frechet_distance
from ldm.runtime.settings import find_config, read_settings
from ldm.training.tasks.settings import AutoencoderRun
from tools.bench.row import Benchmark, Pair, apart, row

_BATCH, _IMAGES, _SIDE = 32, 64, 128


class _Images:
    """A folder of JPEG files of 128 x 128 pixels, read at 32 x 32, with a cache of their latents."""

    def __init__(self, benchmark: Benchmark) -> None:
        config = read_settings(AutoencoderRun, find_config("cifar10/autoencoder-cpu")).autoencoder
        self.autoencoder = Autoencoder(config).to(benchmark.device).eval()
        folder = benchmark.folder()
        for number in range(_IMAGES):
            image = ShapesData("train", _SIDE, size=(_IMAGES, 1))[number].image
            to_pil_image((image + 1) / 2).save(folder / f"{number:04d}.jpg", quality=95)
        self.data = open_data(DataConfig(str(folder), image_size=32, validation_fraction=0.0), "train")
        self.cache = encode_latents(self.autoencoder, self.data, benchmark.folder(), device=benchmark.device)
        self.device, self.rows = benchmark.device, torch.arange(_BATCH)

    def cached(self) -> Tensor:
        return self.cache.gather(self.rows)

    def images(self) -> Tensor:
        return torch.stack([self.data[int(index)].image for index in self.rows]).to(self.device)

    @torch.no_grad()
    def encoded(self, images: Tensor) -> Tensor:
        return self.autoencoder.encode(images).mean

    @property
    def moved(self) -> float:
        """The batch in fp16 read, and written in float32, mean and deviation."""
        return 2.0 * (2 + 4) * self.cached().numel()


@row("cache-encode", "latents of 32 images from the cache, against encoding them (both with our encoder)")
def cache_encode(benchmark: Benchmark) -> Pair:
    both = _Images(benchmark)
    images = both.images()
    difference = lambda: apart(both.cached(), both.encoded(images))  # noqa: E731
    return Pair(both.cached, lambda: both.encoded(images), difference, tolerance=2e-3, flops=0, bytes=both.moved)


@row("cache-jpeg", "latents of 32 images from the cache, against decoding their JPEG files alone")
def cache_jpeg(benchmark: Benchmark) -> Pair:
    both = _Images(benchmark)
    difference = lambda: apart(both.cached(), both.encoded(both.images()))  # noqa: E731
    return Pair(both.cached, both.images, difference, tolerance=2e-3, flops=0, bytes=both.moved)


def _frechet(dimensions: int) -> Pair:
    from cleanfid.fid import frechet_distance as theirs

    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 2 * dimensions, dimensions, generator=generator, dtype=torch.float64)
    draws[1] = 0.8 * draws[1] @ torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    mixing = dimensions**-0.5
    means, covariances = (draws * mixing).mean(1), torch.stack([torch.cov((part * mixing).T) for part in draws])
    arrays = [(mean.numpy(), covariance.numpy()) for mean, covariance in zip(means, covariances, strict=True)]

    def ours() -> float:
        a, b = (Gaussian.from_moments(means[i], covariances[i], 2 * dimensions) for i in range(2))
        return frechet_distance(a, b)

    def peer() -> float:
        return float(np.real(theirs(*arrays[0], *arrays[1])))

    def difference() -> float:
        return abs(ours() - peer()) / abs(peer())

    # two Cholesky factors (n^3 / 3 each), two products (2 n^3 each), the eigenvalues (4 n^3 / 3)
    return Pair(ours, peer, difference, tolerance=1e-6, flops=6 * dimensions**3, bytes=2 * 8.0 * dimensions**2)


@row("frechet-512", "Frechet distance from moments, 512 dimensions, against clean-fid", host=True)
def frechet_512(benchmark: Benchmark) -> Pair:
    return _frechet(512)


@row("frechet-2048", "Frechet distance from moments, 2048 dimensions, against clean-fid", host=True)
def frechet_2048(benchmark: Benchmark) -> Pair:
    return _frechet(2048)
