"""Autoencoder = encoder -> bottleneck -> decoder, with calibrated latents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autoencoders import storage
from autoencoders.bottlenecks import VQConfig
from autoencoders.bottlenecks.base import Bottleneck, Encoding
from autoencoders.bottlenecks.gaussian import Gaussian
from autoencoders.coders import make_coder
from autoencoders.config import AutoencoderConfig, Tiling
from autoencoders.losses import logit_laplace
from autoencoders.measures import AutoencoderOutput, bits_per_pixel
from autoencoders.tiling import WHOLE, in_pieces


class Autoencoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] <-> latents (B, latent_channels, H / factor, W / factor).

    Latents that leave `encode` and enter `decode` are calibrated: (raw - latents_mean) / latents_std a channel. Until
    `calibrate` was called these are 0 and 1.

    Parameter names are those of diffusers' `AutoencoderKL` and `VQModel`; buffers hold what only we need.
    """

    latents_mean: Tensor
    latents_std: Tensor
    prior_mean: Tensor  # of a KL model whose calibration is in its weights: what N(0, 1) has become
    prior_std: Tensor

    def __init__(self, config: AutoencoderConfig, *, seed: int = 0) -> None:
        """Make a new autoencoder with weights drawn from `seed`; the global random state stays as it was."""
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._build(config)
        self.register_buffer("latents_mean", torch.zeros(config.channels))
        self.register_buffer("latents_std", torch.ones(config.channels))
        self.register_buffer("prior_mean", torch.zeros(config.channels), persistent=False)
        self.register_buffer("prior_std", torch.ones(config.channels), persistent=False)

    def _build(self, config: AutoencoderConfig) -> None:
        options = config.options
        self.quantize: Bottleneck = options.build(config)  # the name in VQModel; without parameters in AutoencoderKL
        self.encoder, self.decoder = make_coder(config)
        self.quant_conv: nn.Conv2d | None = None
        self.post_quant_conv: nn.Conv2d | None = None
        if options.quant_conv(config):
            inputs, outputs = options.encoder_outputs(config), options.features_per_latent * config.channels
            self.quant_conv = nn.Conv2d(inputs, outputs, 1)
            self.post_quant_conv = nn.Conv2d(config.channels, config.latent_channels, 1)

    @property
    def factor(self) -> int:
        """Image side / latent side."""
        return self.config.factor

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the backward pass recomputes the stages of encoder and decoder: less memory, more time."""
        return self.encoder is not None and self.encoder.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        for network in (self.encoder, self.decoder):
            if network is not None:
                network.gradient_checkpointing = value

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.channels

    def encode(self, images: Tensor, *, tiling: Tiling = WHOLE) -> Encoding:
        """The distribution of the calibrated latents of images; a VQ model gives the latents before quantisation.

        `tiling` trades time for memory; with tiles there are no gradients.
        """
        raw = self.quantize.encode(self._features(images, tiling))
        mean, std = self._statistics(raw.mean)
        return Encoding((raw.mean - mean) / std, None if raw.std is None else raw.std / std)

    def decode(self, latents: Tensor, *, tiling: Tiling = WHOLE) -> Tensor:
        """The images of calibrated latents; `tiling` as in `encode`."""
        expected = f"expected (B, {self.latent_channels}, h, w)"
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents: {expected}, got {tuple(latents.shape)}")
        mean, std = self._statistics(latents)
        return self._images(self.quantize.decode(latents * std + mean), tiling)

    def codes(self, images: Tensor) -> tuple[Tensor, ...]:
        """The indices of images: a map (B, h, w) a level, coarse to fine, int64, below `config.codebook_sizes`.

        The indices of several codebooks are side by side: (B, h, w * codebooks). `ValueError` without a codebook.
        """
        self._check_codebook()
        return self.quantize.to_indices(self.quantize.encode(self._features(images)).mean)

    def decode_codes(self, codes: Sequence[Tensor]) -> Tensor:
        """The images (B, C, H, W) of maps of indices as `codes` gives them."""
        self._check_codebook()
        sizes = self.config.codebook_sizes
        if len(codes) != len(sizes) or any(indices.ndim != 3 or indices.dtype != torch.int64 for indices in codes):
            got = ", ".join(f"{indices.dtype} {tuple(indices.shape)}" for indices in codes) or "none"
            raise ValueError(f"codes: expected {len(sizes)} maps (B, h, w) of int64, got {got}")
        for level, (indices, size) in enumerate(zip(codes, sizes, strict=True)):
            if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < size):
                raise ValueError(f"codes of level {level}: expected numbers from 0 to {size - 1}")
        return self._images(self.quantize.from_indices(codes))

    def _check_codebook(self) -> None:
        if not self.config.codebook_sizes:
            raise ValueError(f"bottleneck {self.config.bottleneck} has no codes")

    @property
    def has_prior(self) -> bool:
        """Whether the bottleneck has a prior over its latents, so that `sample_prior` works."""
        return self.config.options.has_prior

    @property
    def is_identity(self) -> bool:
        """Whether the latents are the pixels."""
        return self.config.coder_kind == "none"

    @torch.no_grad()
    def sample_prior(self, height: int, width: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Images (B, C, height, width) of latents from the bottleneck's own prior, row i by CPU generator i alone.

        A Gaussian's is N(0, 1), a von Mises-Fisher's uniform on the sphere, a dVAE's uniform over the codes; that of a
        hierarchy is learnt, group by group from the top. Good images need a kl_weight of the order of the evidence
        bound's.
        """
        if not self.has_prior:
            raise ValueError(f"bottleneck {self.config.bottleneck} has no prior of its own")
        if height % self.factor or width % self.factor:
            raise ValueError(f"expected height and width divisible by {self.factor}, got {height} and {width}")
        shape = (self.latent_channels, height // self.factor, width // self.factor)
        latents = self.quantize.sample_prior(shape, generators).to(self.prior_mean)
        if isinstance(self.quantize, Gaussian):
            latents = latents * self.prior_std[:, None, None] + self.prior_mean[:, None, None]
        return self._images(latents)

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> AutoencoderOutput:
        """The training pass, on latents that are not calibrated.

        All randomness is the generator's; in evaluation it may be None for the reconstruction of the mean.
        """
        if self.training and generator is None:
            raise ValueError("a forward pass in training mode needs a generator; in evaluation mode it may be None")
        output = self.quantize(self._features(images), generator)
        metrics = {**output.metrics, **bits_per_pixel(output, images.shape[2] * images.shape[3])}
        decoded = self._decoded(output.latents)
        likelihood = decoded if self.config.decoder_output == "logit_laplace" else None
        return AutoencoderOutput(self._to_image(decoded), output.losses, metrics, likelihood)

    @property
    def last_layer(self) -> nn.Parameter:
        """The kernel of the last convolution: where the gradients of two losses are compared."""
        if self.decoder is None:
            raise ValueError(f"bottleneck {self.config.bottleneck}: there is no decoder")
        return [weight for weight in self.decoder.parameters() if weight.ndim > 1][-1]

    def set_step(self, step: int) -> None:
        """Set the training step that comes next, counted from 0: an annealed temperature is a function of it."""
        self.quantize.set_step(step)

    @torch.no_grad()
    def initialise_codebook(self, batches: Iterable[Tensor], generator: torch.Generator) -> None:
        """Set the codebook of a quantiser to latents of batches of images, drawn by `generator`.

        `ValueError` for another bottleneck, and for a codebook larger than the sample.
        """
        if "codebook_init" not in self.config.options.shared:
            raise ValueError(f"codebook_init: bottleneck {self.config.bottleneck} has no codebook")
        features = torch.cat([self._features(images) for images in batches])
        self.quantize.initialise(features, generator)

    def calibrate(self, mean: Tensor, std: Tensor) -> None:
        """Store the statistics (C,) of the raw latents, as `measure_latents` gives them; replaces older ones."""
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (self.latent_channels,):
                raise ValueError(f"{name}: expected shape ({self.latent_channels},), got {tuple(value.shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name}: expected finite numbers, got {value.tolist()}")
        if not (std > 0).all():
            raise ValueError(f"std: expected numbers above 0, got {std.tolist()}; a channel is constant")
        with torch.no_grad():
            self.latents_mean.copy_(mean)
            self.latents_std.copy_(std)

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, as diffusers reads them, into a folder.

        Where a KL model has quant_conv, the calibration goes into quant_conv and post_quant_conv; else into the config.
        """
        storage.write(path, *self._published())

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, commitment_on: Literal["encoder", "codebook"] | None = None
    ) -> Autoencoder:
        """Read a folder of ours, or of diffusers' `AutoencoderKL` or `VQModel`; in evaluation mode.

        The folder's scaling_factor and shift_factor, or latents_mean and latents_std, become the calibration.
        `commitment_on` "codebook" is for weights of taming-transformers and latent-diffusion that are to be trained
        on: there beta is on the codebook term, and the codes learn by its gradient.
        """
        config, calibration, prior = storage.read_config(path)
        if commitment_on is not None:
            if not isinstance(config.options, VQConfig):
                raise ValueError(f"{path}: commitment_on belongs to a codebook; this is bottleneck {config.bottleneck}")
            config = replace(config, codebook="gradient", commitment_on=commitment_on)
        with torch.device("meta"):
            expected = cls(config).named_parameters()
        tensors = storage.read_tensors(path, dict(expected))
        model = cls(config)
        model.load_state_dict(tensors, strict=False)  # buffers are not in the folder; names were checked above
        model.calibrate(*calibration)
        model.prior_mean.copy_(prior[0])
        model.prior_std.copy_(prior[1])
        return model.eval()

    def fingerprint(self) -> str:
        """SHA-256 of what `save_pretrained` would write; the same before saving and after loading."""
        config, tensors = self._published()
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _published(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        parameters = dict(self.named_parameters())
        calibration, prior = (self.latents_mean, self.latents_std), (self.prior_mean, self.prior_std)
        return storage.publish(self.config, parameters, calibration, prior)

    def _features(self, images: Tensor, tiling: Tiling = WHOLE) -> Tensor:
        """Images -> input of the bottleneck."""
        expected = f"(B, {self.config.in_channels}, H, W) with H and W divisible by {self.factor}"
        if images.ndim != 4 or images.shape[1] != self.config.in_channels or not images.is_floating_point():
            raise ValueError(f"images: expected floats {expected}, got {images.dtype} {tuple(images.shape)}")
        if images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise ValueError(f"images: expected {expected}, got {tuple(images.shape)}")
        if self.encoder is None:
            return images
        features = in_pieces(
            self.encoder, images.to(next(self.encoder.parameters()).dtype), tiling, self.config.coder_factor
        )
        return features if self.quant_conv is None else self.quant_conv(features)

    def _images(self, latents: Tensor, tiling: Tiling = WHOLE) -> Tensor:
        """Output of the bottleneck -> images."""
        return self._to_image(self._decoded(latents, tiling))

    def _decoded(self, latents: Tensor, tiling: Tiling = WHOLE) -> Tensor:
        """Output of the bottleneck -> output of the decoder."""
        if self.decoder is None:
            return latents
        latents = latents.to(next(self.decoder.parameters()).dtype)
        features = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        return in_pieces(self.decoder, features, tiling, self.config.coder_factor)

    def _to_image(self, decoded: Tensor) -> Tensor:
        """Output of the decoder -> images."""
        return logit_laplace.median(decoded) if self.config.decoder_output == "logit_laplace" else decoded

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The calibration as (C, 1, 1), on the device and in the type of `like`."""
        return self.latents_mean[:, None, None].to(like), self.latents_std[:, None, None].to(like)
