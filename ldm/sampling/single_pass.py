"""Models that draw pictures without diffusion: in one pass from a law of their own.

A folder with `unet/` is a diffusion model, of `ldm.sampling.pipeline`; what has none is looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from autoencoders import Autoencoder, Generator
from ldm.runtime.errors import UserError
from ldm.sampling.code_prior import CodePriorModel, holds_prior
from ldm.sampling.config import Request, SamplingConfig, check_conditions
from samplers.noise import stream


class ImageModel(Protocol):
    """What `ldm sample` asks of such a model. Images are (B, 3, H, W) in [-1, 1]."""

    class_names: tuple[str, ...]
    """What it can be asked for by `Request.class_label`; () for none."""
    has_text: bool
    """Whether it can be asked for by a prompt."""
    image_size: int
    """Height and width of its pictures."""
    supported_settings: tuple[str, ...]
    """Which of the `SamplingConfig` mean something to it."""

    def check(self, requests: Sequence[Request], sampling: SamplingConfig | None = None) -> None:
        """Refuse, before any work, what this model cannot do; `UserError` says what would be right."""

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 64,
    ) -> Iterator[Tensor]:
        """One image a request, in order: sample i depends on (seed, first_index + i) and its request alone."""


class _Unconditional:
    """A model that can be asked for nothing: each picture is made of its own random numbers alone."""

    class_names: tuple[str, ...] = ()
    has_text = False
    supported_settings: tuple[str, ...] = ()
    purpose: str  # of the random streams

    def images(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Images (B, 3, H, W), row i of CPU generator i alone."""
        raise NotImplementedError

    def check(self, requests: Sequence[Request], sampling: SamplingConfig | None = None) -> None:
        for request in requests:
            check_conditions(request, text=False, classes=False)

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 64,
    ) -> Iterator[Tensor]:
        self.check(requests)
        for start in range(0, len(requests), batch_size):
            numbers = range(first_index + start, first_index + min(len(requests), start + batch_size))
            yield self.images([stream(seed, number, self.purpose) for number in numbers])


class AutoencoderPrior(_Unconditional):
    """An autoencoder that draws from its bottleneck's own prior: the VAE as a generative model.

    Kingma and Welling 2014, arXiv:1312.6114, section 3. Good pictures need a posterior that was held to the prior: a
    `--kl-weight` of the order of the evidence bound's, not the 1e-6 of an autoencoder made for diffusion.
    """

    purpose = "prior"

    def __init__(self, autoencoder: Autoencoder, image_size: int, device: torch.device) -> None:
        self.autoencoder = autoencoder.to(device).eval().requires_grad_(False)
        self.image_size = image_size

    def images(self, generators: Sequence[torch.Generator]) -> Tensor:
        return self.autoencoder.sample_prior(self.image_size, self.image_size, generators).float().clamp(-1, 1)


class NoiseGenerator(_Unconditional):
    """The generator of a GAN: a decoder whose latents are noise (`ldm train gan`)."""

    purpose = "noise"

    def __init__(self, generator: Generator, device: torch.device) -> None:
        self.generator, self.device = generator.to(device).eval().requires_grad_(False), device
        self.image_size = generator.config.image_size

    def images(self, generators: Sequence[torch.Generator]) -> Tensor:
        noise = torch.stack([torch.randn(self.generator.noise_shape, generator=each) for each in generators])
        return self.generator(noise.to(self.device)).float()


def load_direct(folder: str | Path, device: torch.device | str = "cpu") -> ImageModel | None:
    """The model of a folder that draws without diffusion; None for a folder that is not of that kind.

    `UserError` for an autoencoder that cannot draw: one without a prior of its own, or a damaged one.
    """
    root = Path(folder)
    if holds_prior(root):
        return CodePriorModel.load(root, device)
    if (root / "unet").exists() or (root / "model_index.json").exists():
        return None
    if (root / "generator").is_dir():
        try:
            return NoiseGenerator(Generator.from_pretrained(root / "generator"), torch.device(device))
        except (ValueError, OSError) as error:
            raise UserError(f"{folder}: {error}") from None
    vae = root / "vae" if (root / "vae").is_dir() else root
    if not (vae / "config.json").is_file():
        return None
    try:
        autoencoder = Autoencoder.from_pretrained(vae)
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}: {error}") from None
    config = autoencoder.config
    if not autoencoder.has_prior:
        more = "`ldm train prior` or `ldm train diffusion`" if config.codebook_sizes else "`ldm train diffusion`"
        raise UserError(
            f"{folder}: an autoencoder without a prior of its own ({config.bottleneck})", remedy=f"{more} gives it one"
        )
    if config.sample_size is None:
        raise UserError(
            f"{folder}: its config.json has no sample_size", remedy="write the side of its images in pixels there"
        )
    return AutoencoderPrior(autoencoder, config.sample_size, torch.device(device))
