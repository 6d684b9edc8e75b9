"""Models that draw images in one pass, from a distribution of their own: VAEs and the generators of GANs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from autoencoders import Autoencoder, Generator
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.image_model import ImageModel, OnStep, Plan
from samplers.noise import stream


class _Unconditional(ImageModel[Plan]):
    """A model without conditions: each image is made of its own random numbers alone."""

    purpose: str  # of the random streams

    @abstractmethod
    def images(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Images (B, 3, H, W), row i of CPU generator i alone."""

    def resolve(self, sampling: SamplingConfig | Plan | None = None) -> Plan:
        return sampling if isinstance(sampling, Plan) else Plan(config=self.with_defaults(sampling))

    def sample_batch(
        self, requests: Sequence[Request], plan: Plan, seed: int, first_index: int, position: int, on_step: OnStep
    ) -> Tensor:
        first = first_index + position
        return self.images([stream(seed, number, self.purpose) for number in range(first, first + len(requests))])


class AutoencoderPrior(_Unconditional):
    """An autoencoder that draws from its bottleneck's own prior: the VAE as a generative model.

    Kingma and Welling 2014, arXiv:1312.6114, section 3. Good images need a posterior that was held to the prior: a
    `kl_weight` of the order of the evidence bound's, not the 1e-6 of an autoencoder made for diffusion.
    """

    purpose = "prior"

    def __init__(self, autoencoder: Autoencoder, image_size: int, device: torch.device) -> None:
        self.autoencoder, self.device = autoencoder.to(device).eval().requires_grad_(False), device
        self._image_size = image_size

    @property
    def image_size(self) -> int:
        return self._image_size

    def images(self, generators: Sequence[torch.Generator]) -> Tensor:
        return self.autoencoder.sample_prior(self.image_size, self.image_size, generators).float()


class NoiseGenerator(_Unconditional):
    """The generator of a GAN: a decoder whose latents are noise (`ldm train gan`)."""

    purpose = "noise"

    def __init__(self, generator: Generator, device: torch.device) -> None:
        self.generator, self.device = generator.to(device).eval().requires_grad_(False), device

    @property
    def image_size(self) -> int:
        return self.generator.config.image_size

    def images(self, generators: Sequence[torch.Generator]) -> Tensor:
        noise = torch.stack([torch.randn(self.generator.noise_shape, generator=generator) for generator in generators])
        return self.generator(noise.to(self.device)).float()
