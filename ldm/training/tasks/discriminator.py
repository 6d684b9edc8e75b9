"""The discriminator as the second player of a training: of an autoencoder, or of a generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoencoders import DiscriminatorConfig, make_discriminator
from autoencoders.losses.adversarial import clip_weights, generator_loss, learning_loss
from ldm.runtime.errors import UserError
from ldm.training.adversary import Loss
from ldm.training.randomness import StepRandom

Make = Callable[[StepRandom], Tensor]


class Discriminator:
    """Learns to tell a batch of images (B, 3, H, W) from what it is shown; see `ldm.training.adversary.Adversary`.

    `learns_from` is its first step. `make` makes pictures where it is shown none: where the first player plays only
    every `rounds`-th step, the others are its alone.
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
        make: Make | None = None,
    ) -> None:
        try:
            self.model = make_discriminator(config, image_size, seed=seed)
        except ValueError as error:
            raise UserError(str(error)) from None
        self.config, self.learns_from, self.rounds, self.make = config, learns_from, rounds, make
        self.learning_rate = config.discriminator_learning_rate
        self.betas = config.discriminator_beta1, config.discriminator_beta2

    def learns_at(self, step: int) -> bool:
        return step >= self.learns_from

    def alone_at(self, step: int) -> bool:
        return (step + 1) % self.rounds != 0

    def loss(self, batch: Tensor, shown: Tensor | None, random: StepRandom) -> Loss:
        if shown is None:
            assert self.make is not None, "the first player played, and showed nothing"
            with torch.no_grad():
                shown = self.make(random)
        between = random.uniform("between")
        total, terms = learning_loss(self.config, self.model, batch, shown.to(batch.dtype), between, random.step)
        return Loss(total, terms)

    def after_step(self) -> None:
        if self.config.objective == "wgan":
            clip_weights(self.model, self.config.weight_clip)

    @torch.no_grad()
    def opinion(self, images: Tensor) -> Tensor:
        """The mean logit of each image, (B,), in evaluation mode."""
        training = self.model.training
        logits = self.model.eval()(images).flatten(1).mean(1)
        self.model.train(training)
        return logits

    def judge(self, pictures: Tensor) -> Tensor:
        """What the maker of the pictures is to minimise: the gradient goes to them, not to the weights here."""
        return generator_loss(self.config.objective, self.model(pictures))
