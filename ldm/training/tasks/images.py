"""What the trainings on images share: the discriminator, perceptual and Frechet distances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from autoencoders import DiscriminatorConfig, PerceptualConfig, make_discriminator
from autoencoders.losses.adversarial import clip_weights, generator_loss, learning_loss
from autoencoders.losses.perceptual import Distance
from ldm.data.dataset import ImageData
from ldm.data.selection import image_batches, to_device
from ldm.evaluation.features.extractors import Extractor, figure_name, inception_extractor, trained_extractor
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.features.train_network import trained_network
from ldm.evaluation.metrics.frechet import frechet_distance
from ldm.evaluation.metrics.perceptual import TrainedFeatures, lpips_distance
from ldm.runtime.errors import UserError
from ldm.training.randomness import BatchPlan, StepRandom
from ldm.training.task import Adversary, Loss, Task
from ldm.training.tasks.settings import AutoencoderRun, GanRun


class Discriminator(Adversary):
    """Learns to distinguish a batch of images (B, 3, H, W) from generated ones.

    `learns_from` is its first step. `generate` makes images where the task's model learns only every `rounds`-th step:
    in the others the discriminator learns alone.
    """

    name = "discriminator"

    def __init__(
        self,
        config: DiscriminatorConfig,
        image_size: int,
        seed: int,
        *,
        learns_from: int = 0,
        rounds: int = 1,
        generate: Callable[[StepRandom], Tensor] | None = None,
    ) -> None:
        try:
            self.model = make_discriminator(config, image_size, seed=seed)
        except ValueError as error:
            setting, _, problem = str(error).partition(": ")
            raise UserError(problem, setting=setting) from None
        self.config, self.learns_from, self.rounds, self.generate = config, learns_from, rounds, generate
        self.learning_rate = config.discriminator_learning_rate
        self.betas = config.discriminator_beta1, config.discriminator_beta2

    def learns_at(self, step: int) -> bool:
        return step >= self.learns_from

    def alone_at(self, step: int) -> bool:
        return (step + 1) % self.rounds != 0

    def loss(self, batch: Tensor, generated: Tensor | None, random: StepRandom) -> Loss:
        if generated is None:
            assert self.generate is not None, "the task's model learned, and its loss had no images"
            with torch.no_grad():
                generated = self.generate(random)
        between = random.uniform("between")
        total, terms = learning_loss(self.config, self.model, batch, generated.to(batch.dtype), between, random.step)
        return Loss(total, terms)

    def after_step(self) -> None:
        if self.config.objective == "wgan":
            clip_weights(self.model, self.config.weight_clip)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The mean logit of each image, (B,), in evaluation mode."""
        training = self.model.training
        logits = self.model.eval()(images).flatten(1).mean(1)
        self.model.train(training)
        return logits

    def generator_loss(self, images: Tensor) -> Tensor:
        """The adversarial loss of the network that generated the images: its gradient does not reach these weights."""
        return generator_loss(self.config.objective, self.model(images))


def perceptual_distance(
    config: PerceptualConfig, data: ImageData, device: torch.device
) -> tuple[Distance | None, dict[str, Any]]:
    """The distance that the settings name, frozen, and what a resumed run must share of it; (None, {}) for none.

    `UserError` where LPIPS has no weights. The network of the data set is trained now unless it is in the cache.
    """
    if not config.active:
        return None, {}
    if config.perceptual == "lpips":
        return lpips_distance(config.lpips_network, config.lpips_weights, device=device), config.fingerprint()
    network, _ = trained_network(data, device=device)
    return TrainedFeatures(network), {**config.fingerprint(), "network": network.fingerprint()[:16]}


class FrechetMeasure:
    """The Frechet distance between held-out and generated images: in Inception's features where its weights are, else
    in those of a network that was trained on the data; the name of the measure says which."""

    def __init__(self, data: ImageData, device: torch.device) -> None:
        self._data, self._device = data, device
        self._extractor: Extractor | None = None

    @property
    def extractor(self) -> Extractor:
        """Made when it is first needed: a run that is refused should not wait for its training."""
        if self._extractor is None:
            inception = inception_extractor(device=self._device)
            self._extractor = inception or trained_extractor(self._data, device=self._device)
        return self._extractor

    def __call__(self, prefix: str, pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """{name: distance} of batches (held-out, generated), (B, 3, H, W) in [-1, 1]; "r" makes FID rFID."""
        real, fake = zip(*((self.extractor(a), self.extractor(b.clamp(-1, 1))) for a, b in pairs), strict=True)
        distance = frechet_distance(Gaussian.fit(torch.cat(real)), Gaussian.fit(torch.cat(fake)))
        return {prefix + figure_name("fid", self.extractor): distance}


class ImageTask(Task):
    """A training on images, validated on held-out ones and its own."""

    config: AutoencoderRun | GanRun
    data: ImageData
    device: torch.device
    frechet: FrechetMeasure | None

    def batches(self, plan: BatchPlan) -> Iterator[Tensor]:
        """Images (B, 3, H, W) on the device."""
        for batch in image_batches(self.data, plan, self.config.training.dataloader_num_workers):
            yield to_device(batch.images, self.device)

    def measure_pairs(
        self, prefix: str, pairs: Iterable[tuple[Tensor, Tensor]], **measures: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, float]:
        """The mean of each measure over batches (held-out, own), and the Frechet distance where one is set."""
        values: dict[str, list[Tensor]] = {name: [] for name in measures}

        def recorded() -> Iterator[tuple[Tensor, Tensor]]:
            for pair in pairs:
                for name, measure in measures.items():
                    values[name].append(measure(*pair))
                yield pair

        distance = self.frechet(prefix, recorded()) if self.frechet is not None else {}
        if self.frechet is None:
            for _ in recorded():
                pass
        return {name: float(torch.cat(parts).mean()) for name, parts in values.items()} | distance
