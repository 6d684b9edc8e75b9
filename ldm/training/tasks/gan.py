"""Training the decoder as a generator of pictures from noise, against a discriminator."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders import DiscriminatorConfig, Generator, GeneratorConfig
from ldm.data import DataConfig, ImageData
from ldm.data.selection import even_indices, plain_batches, to_device
from ldm.runtime.errors import UserError, at_least
from ldm.runtime.files import atomic_folder
from ldm.training.adversary import Loss
from ldm.training.config import TrainingConfig, config_facts
from ldm.training.randomness import BatchPlan, StepRandom, key
from ldm.training.tasks.autoencoder import image_batches
from ldm.training.tasks.discriminator import Discriminator
from ldm.training.tasks.perception import FrechetMeasure

_PREVIEW, _BATCH, _STATISTICS = 36, 64, 512


@dataclass(frozen=True)
class GanRun:
    """`ldm train gan`: a generator of pictures from noise, and a discriminator that it learns to deceive."""

    dataset: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    discriminator_rounds: int = 1
    """Steps of the discriminator for one of the generator (5 is usual for wgan and wgan_gp); `max_train_steps` counts
    those of the discriminator."""
    validation_images: int = 256
    """Held-out images, and as many pictures, between which the Frechet distance is measured."""
    validation_fid: bool = False
    """Measure that distance (FID where Inception's weights are, else of a network trained on the data set), and keep
    the best model by it in best/."""

    def __post_init__(self) -> None:
        at_least(self, validation_images=4, discriminator_rounds=1)


class GanTask:
    """The generator's half of the game; publishes `generator/`."""

    kind = "gan"

    def __init__(self, config: GanRun, data: ImageData, validation: ImageData, device: torch.device) -> None:
        size = config.generator.image_size
        at_once = config.training.train_batch_size // config.training.gradient_accumulation_steps
        if size != data.image_size:
            raise UserError(
                (
                    f"this generator makes {size} pixels (`noise_size` times 2 for each of "
                    "`block_out_channels` but the first)"
                ),
                setting="image_size",
                value=data.image_size,
            )
        if config.generator.out_channels != 3:
            raise UserError("images have 3 channels", setting="out_channels", value=config.generator.out_channels)
        if config.discriminator_rounds > config.training.max_train_steps:
            raise UserError(
                "more than `max_train_steps`", setting="discriminator_rounds", value=config.discriminator_rounds
            )
        if config.generator.normalization == "batch" and at_once < 2:
            raise UserError(
                "batch normalisation needs 2 pictures or more in each forward call", setting="train_batch_size"
            )
        self.config, self.data, self.validation, self.device = config, data, validation, device
        seed, rounds = config.training.seed, config.discriminator_rounds
        self.model = Generator(config.generator, seed=seed)
        self.adversary = Discriminator(config.discriminator, size, seed, rounds=rounds, make=self._pictures)
        self.frechet = FrechetMeasure(data, device) if config.validation_fid else None
        self.best_by = "F" if config.validation_fid else None
        self.length = len(data)
        self.facts: dict[str, Any] = {
            "data": data.fingerprint,
            "generator": dataclasses.asdict(config.generator),
            "discriminator": dataclasses.asdict(config.discriminator) | {"rounds": rounds},
            "training": config_facts(config.training),
        }

    def _pictures(self, random: StepRandom) -> Tensor:
        return self.model(random.normal("noise", self.model.noise_shape))

    def batches(self, plan: BatchPlan) -> Iterator[Tensor]:
        """Images (B, 3, H, W) on the device."""
        for batch in image_batches(self.data, plan, self.config.training.dataloader_num_workers):
            yield to_device(batch.images, self.device)

    def loss(self, model: nn.Module, batch: Tensor, random: StepRandom) -> Loss:
        pictures = model(random.normal("noise", self.model.noise_shape)).to(batch.dtype)
        loss = self.adversary.judge(pictures)
        return Loss(loss, {"adversarial": loss}, pictures.detach())

    def validate(self, model: nn.Module) -> dict[str, Any]:
        opinions: dict[str, list[Tensor]] = {"discriminator_real": [], "discriminator_fake": []}

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            count = min(self.config.validation_images, len(self.validation))
            images = plain_batches(self.validation, even_indices(len(self.validation), count), _BATCH, self.device)
            for pair in zip(images, self._drawn(model, count), strict=True):
                for values, batch in zip(opinions.values(), pair, strict=True):
                    values.append(self.adversary.opinion(batch))
                yield pair

        model = self._settled(model)
        distance = self.frechet("", pairs()) if self.frechet is not None else {}
        if self.frechet is None:
            for _ in pairs():
                pass
        return {name: float(torch.cat(values).mean()) for name, values in opinions.items()} | distance

    def preview(self, model: nn.Module) -> Tensor:
        """Pictures from noise that stays the same."""
        return torch.cat(list(self._drawn(self._settled(model), _PREVIEW)))

    def _settled(self, model: nn.Module) -> Generator:
        """A copy whose statistics are its own; what is trained stays as it is."""
        assert isinstance(model, Generator)
        settled = copy.deepcopy(model).eval()
        settled.recalibrate_batch_norm([noise.to(self.device) for noise in self._noise("statistics", _STATISTICS)])
        return settled

    def _noise(self, purpose: str, count: int) -> Iterator[Tensor]:
        draws = torch.Generator().manual_seed(key(self.config.training.seed, purpose))
        for start in range(0, count, _BATCH):
            yield torch.randn((min(_BATCH, count - start), *self.model.noise_shape), generator=draws)

    def _drawn(self, model: nn.Module, count: int) -> Iterator[Tensor]:
        for noise in self._noise("preview", count):
            with torch.no_grad():
                yield model(noise.to(self.device)).float()

    def publish(self, model: nn.Module, folder: Path) -> None:
        with atomic_folder(folder / "generator") as target:
            self._settled(model).save_pretrained(target)
