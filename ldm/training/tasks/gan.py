"""Training the decoder as a generator of images from noise, against a discriminator."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders import Generator
from ldm.data.dataset import ImageData
from ldm.data.selection import even_indices, plain_batches
from ldm.models.size import build_within
from ldm.runtime.errors import UserError
from ldm.training.randomness import StepRandom, key
from ldm.training.task import Loss
from ldm.training.tasks.images import Discriminator, FrechetMeasure, ImageTask
from ldm.training.tasks.settings import GanRun

_PREVIEW, _BATCH, _STATISTICS = 36, 64, 512


class GanTask(ImageTask):
    """The generator's half of the game; publishes `generator/`."""

    kind = "gan"
    model: Generator
    config: GanRun
    adversary: Discriminator

    def __init__(self, config: GanRun, data: ImageData, validation: ImageData, device: torch.device) -> None:
        size = config.generator.image_size
        at_once = config.training.train_batch_size // config.training.gradient_accumulation_steps
        if size != data.image_size:
            problem = f"this generator makes {size} pixels, by `noise_size` and `block_out_channels`"
            raise UserError(problem, setting="image_size", value=data.image_size)
        if config.generator.out_channels != 3:
            raise UserError("images have 3 channels", setting="out_channels", value=config.generator.out_channels)
        if config.discriminator_rounds > config.training.max_train_steps:
            raise UserError(f"`discriminator_rounds` {config.discriminator_rounds}: more than `max_train_steps`")
        if config.generator.normalization == "batch" and at_once < 2:
            raise UserError("`train_batch_size`: batch normalisation needs 2 images or more in each forward call")
        self.config, self.data, self.validation, self.device = config, data, validation, device
        seed, rounds = config.training.seed, config.discriminator_rounds
        self.model = build_within(config.training.max_parameters, lambda: Generator(config.generator, seed=seed))
        self.adversary = Discriminator(config.discriminator, size, seed, rounds=rounds, generate=self._generate)
        self.frechet = FrechetMeasure(data, device) if config.validation_fid else None
        self.best_by = "F" if config.validation_fid else ""
        self.length = len(data)
        self.fingerprint = {
            "data": data.fingerprint,
            "generator": dataclasses.asdict(config.generator),
            "discriminator": dataclasses.asdict(config.discriminator) | {"rounds": rounds},
            "training": config.training.fingerprint(),
        }

    def _generate(self, random: StepRandom) -> Tensor:
        return self.model(random.normal("noise", self.model.noise_shape))

    def loss(self, model: nn.Module, batch: Tensor, random: StepRandom) -> Loss:
        images = model(random.normal("noise", self.model.noise_shape)).to(batch.dtype)
        loss = self.adversary.generator_loss(images)
        return Loss(loss, {"adversarial": loss}, images.detach())

    def validate(self, model: nn.Module) -> dict[str, Any]:
        count = min(self.config.validation_images, len(self.validation))
        images = plain_batches(self.validation, even_indices(len(self.validation), count), _BATCH, self.device)
        return self.measure_pairs(
            "",
            zip(images, self._samples(self._recalibrated(model), count), strict=True),
            discriminator_real=lambda real, _: self.adversary.logits(real),
            discriminator_fake=lambda _, generated: self.adversary.logits(generated),
        )

    def preview(self, model: nn.Module) -> Tensor:
        """Images from noise that stays the same."""
        return torch.cat(list(self._samples(self._recalibrated(model), _PREVIEW)))

    def _recalibrated(self, model: nn.Module) -> Generator:
        """A copy whose batch statistics are of its own weights; what is trained stays as it is."""
        assert isinstance(model, Generator)
        generator = copy.deepcopy(model).eval()
        generator.recalibrate_batch_norm([noise.to(self.device) for noise in self._noise("statistics", _STATISTICS)])
        return generator

    def _noise(self, purpose: str, count: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(key(self.config.training.seed, purpose))
        for start in range(0, count, _BATCH):
            yield torch.randn((min(_BATCH, count - start), *self.model.noise_shape), generator=generator)

    def _samples(self, model: nn.Module, count: int) -> Iterator[Tensor]:
        for noise in self._noise("preview", count):
            with torch.no_grad():
                yield model(noise.to(self.device)).float()

    def publish(self, model: nn.Module, folder: Path) -> None:
        self._recalibrated(model).save_pretrained(folder / "generator")
