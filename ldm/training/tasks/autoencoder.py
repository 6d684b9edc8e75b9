"""Training an autoencoder on images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders import Autoencoder, AutoencoderConfig, autoencoder_loss, corrupt, measure_latents
from autoencoders.losses import adaptive_weight
from ldm.data.dataset import ImageData
from ldm.data.selection import even_indices, plain_batches, shuffled_indices
from ldm.evaluation.metrics.image_quality import psnr, ssim
from ldm.models.size import build_within
from ldm.runtime.errors import UserError
from ldm.runtime.text import counted
from ldm.training.randomness import StepRandom
from ldm.training.task import Loss
from ldm.training.tasks.codebook_use import codebook_use
from ldm.training.tasks.images import Discriminator, FrechetMeasure, ImageTask, perceptual_distance
from ldm.training.tasks.latents import check_divisible
from ldm.training.tasks.settings import AutoencoderRun


class AutoencoderTask(ImageTask):
    """Reconstruction plus the bottleneck's own terms; publishes `vae/` with calibrated latents."""

    kind = "autoencoder"
    model: Autoencoder
    config: AutoencoderRun
    adversary: Discriminator | None

    def __init__(self, config: AutoencoderRun, data: ImageData, validation: ImageData, device: torch.device) -> None:
        if config.autoencoder.coder_kind == "none":
            raise UserError(
                "`bottleneck` identity: nothing to train; use another, or train a diffusion of `autoencoder` identity"
            )
        others = (config.corruption, config.adversarial, config.perceptual)
        if config.autoencoder.coder_kind == "linear" and any(other.active for other in others):
            settings = "`mask_probability`, `noise_std`, `adversarial_weight` and `perceptual`"
            raise UserError(f"a linear autoencoder is found in closed form; leave out {settings}")
        if config.autoencoder.in_channels != 3:
            raise UserError("images have 3 channels", setting="in_channels", value=config.autoencoder.in_channels)
        config = with_likelihood(config)
        start, steps = config.adversarial.discriminator_start, config.training.max_train_steps
        if config.adversarial.active and start >= steps:
            problem = (
                f"beyond the run's {counted(steps, 'step')}; take more `max_train_steps`, or `adversarial_weight` 0"
            )
            raise UserError(problem, setting="discriminator_start", value=start)
        self.config, self.data, self.validation, self.device = config, data, validation, device
        size = config.autoencoder.sample_size or data.image_size  # `ldm sample` draws images of this size
        architecture, seed = dataclasses.replace(config.autoencoder, sample_size=size), config.training.seed
        self.model = build_within(config.training.max_parameters, lambda: Autoencoder(architecture, seed=seed))
        check_divisible(data.image_size, self.model.factor)
        self.model.gradient_checkpointing = config.training.gradient_checkpointing
        self.adversary = self._discriminator()
        self.distance, perceptual = perceptual_distance(config.perceptual, data, device)
        if config.validation_rfid and min(config.validation_images, len(validation)) < 4:
            raise UserError("`validation_rfid`: needs 4 or more held-out images; take more `validation_images`")
        self.frechet = FrechetMeasure(data, device) if config.validation_rfid else None
        self.best_by = "rF" if config.validation_rfid else ""
        if "codebook_init" in config.autoencoder.options.shared and config.autoencoder.codebook_init == "data":
            self._initialise_codebook()
        self.length = len(data)
        adversarial: dict[str, Any] = {"adversarial": config.adversarial, "discriminator": config.discriminator}
        adversarial = adversarial if self.adversary is not None else {}
        self.fingerprint = {
            "data": data.fingerprint,
            "autoencoder": _autoencoder_fingerprint(config.autoencoder),
            "loss": config.loss.fingerprint(),
            **({"perceptual": perceptual} if perceptual else {}),
            **{name: dataclasses.asdict(settings) for name, settings in adversarial.items()},
            **({"corruption": dataclasses.asdict(config.corruption)} if config.corruption.active else {}),
            "training": config.training.fingerprint(),
        }

    def _discriminator(self) -> Discriminator | None:
        if not self.config.adversarial.active:
            return None
        start, warmup = self.config.adversarial.discriminator_start, self.config.adversarial.discriminator_warmup
        seed = self.config.training.seed
        return Discriminator(self.config.discriminator, self.data.image_size, seed, learns_from=start - warmup)

    def _initialise_codebook(self) -> None:
        """Codes from the latents of calibration images spread over the data; some more latents than codes."""
        codes, positions = self.config.autoencoder.num_codes, (self.data.image_size // self.model.factor) ** 2
        count = min(self.config.calibration_images, len(self.data))
        if codes > count * positions:
            sample = f"{counted(count * positions, 'latent')} of {counted(count, 'image')}"
            problem = f"larger than the sample that would initialise the codebook, {sample}"
            raise UserError(problem, remedy="take fewer", setting="num_codes", value=codes)
        chosen = even_indices(len(self.data), min(count, -(-4 * codes // positions)))
        images = plain_batches(self.data, chosen, 64, self.device)
        generator = torch.Generator().manual_seed(self.config.training.seed)
        self.model.to(self.device).initialise_codebook(images, generator)

    def loss(self, model: nn.Module, batch: Tensor, random: StepRandom) -> Loss:
        corrupted = corrupt(batch, self.config.corruption, random.generator("corruption"))
        self.model.set_step(random.step)
        output = model(corrupted, generator=random.generator("posterior"))
        result = autoencoder_loss(self.config.loss, batch, output, random.step)
        total, reconstruction, terms = result.total, result.reconstruction, {**result.terms, **output.metrics}
        if self.distance is not None:
            perceptual = self.distance(output.reconstruction.to(batch.dtype), batch).mean()
            weighted = self.config.perceptual.perceptual_weight * perceptual
            total, reconstruction = total + weighted, reconstruction + weighted
            terms["perceptual"] = perceptual
        if self.adversary is None:
            return Loss(total, terms)
        generated = output.reconstruction.to(batch.dtype)
        if weight := self.config.adversarial.weight_at(random.step):
            adversarial = self.adversary.generator_loss(generated)
            terms["adversarial"] = adversarial
            if self.config.adversarial.adaptive:
                largest = self.config.adversarial.adaptive_max
                terms["adaptive_weight"] = adaptive_weight(reconstruction, adversarial, self.model.last_layer, largest)
                adversarial = terms["adaptive_weight"] * adversarial
            total = total + weight * adversarial
        return Loss(total, terms, generated.detach())

    def validate(self, model: nn.Module) -> dict[str, Any]:
        chosen = shuffled_indices(len(self.validation), self.config.validation_images)
        batches = plain_batches(self.validation, chosen, 64, self.device)
        pairs = ((images, reconstruct(model, images)) for images in batches)
        measures = self.measure_pairs("r", pairs, psnr=lambda a, b: psnr(b, a), ssim=lambda a, b: ssim(b, a))
        if not self.config.autoencoder.codebook_sizes:
            return measures
        assert isinstance(model, Autoencoder)
        return measures | codebook_use(model, plain_batches(self.validation, chosen, 64, self.device))

    def preview(self, model: nn.Module) -> Tensor:
        """Six held-out images above their reconstructions, three times: a grid of 6 x 6."""
        count = min(18, len(self.validation))
        images = next(plain_batches(self.validation, even_indices(len(self.validation), count), count, self.device))
        reconstruction = reconstruct(model, images)
        rows = [part for pair in zip(images.split(6), reconstruction.split(6), strict=True) for part in pair]
        return torch.cat(rows)

    def publish(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, Autoencoder)
        published = Autoencoder(model.config).to(self.device).eval()
        published.load_state_dict(model.state_dict())
        count = min(self.config.calibration_images, len(self.data))
        images = plain_batches(self.data, even_indices(len(self.data), count), 64, self.device)
        published.calibrate(*measure_latents(published, images))
        published.save_pretrained(folder / "vae")


def with_likelihood(config: AutoencoderRun) -> AutoencoderRun:
    """The settings with the decoder's output that the loss needs; `UserError` where they contradict each other."""
    output = "logit_laplace" if config.loss.reconstruction == "logit_laplace" else "image"
    if config.autoencoder.decoder_output not in ("image", output):
        raise UserError("`decoder_output` logit_laplace: only `reconstruction` logit_laplace trains it")
    try:
        return dataclasses.replace(
            config,
            autoencoder=dataclasses.replace(config.autoencoder, decoder_output=output),  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise UserError(f"{error}", setting="reconstruction", value=output) from None


def _autoencoder_fingerprint(config: AutoencoderConfig) -> dict[str, Any]:
    """All settings but those that older runs did not have, where they have no effect."""
    unused = {name for name in ("vqvae2", "nvae") if name != config.bottleneck}
    unused |= {"coder", "vit"} if config.coder == "conv" else set()
    unused |= {"decoder_output"} if config.decoder_output == "image" else set()
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in unused}


@torch.no_grad()
def reconstruct(model: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) through the posterior mean and back."""
    assert isinstance(model, Autoencoder)
    return model.decode(model.encode(images).mean).float()
