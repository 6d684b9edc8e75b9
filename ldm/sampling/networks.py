"""The networks that a diffusion pipeline samples with, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from autoencoders import Autoencoder
from ldm.conditioning.conditioner import Conditioner, class_index
from ldm.models.backbone import Backbone
from ldm.models.classifier import NoisyClassifier
from ldm.runtime.errors import UserError
from ldm.sampling.autoguidance import GuidingModel
from ldm.sampling.forward_process import Process
from ldm.sampling.model_folder import LoadedClassifier
from samplers.level import short_repr


@dataclass(frozen=True)
class Networks:
    """All networks of a pipeline and their noise process. `classifiers` go by the names of their branches."""

    autoencoder: Autoencoder
    unet: Backbone
    conditioner: Conditioner
    process: Process
    classifiers: Mapping[str, LoadedClassifier] = field(default_factory=dict)
    guiding_model: GuidingModel | None = None

    __repr__ = short_repr

    def modules(self) -> list[nn.Module]:
        """Each network once."""
        guiding = [] if self.guiding_model is None else [self.guiding_model.unet, self.guiding_model.conditioner]
        classifiers = [classifier.network for classifier in self.classifiers.values()]
        return [self.autoencoder, self.unet, self.conditioner, *guiding, *classifiers]

    @property
    def device(self) -> torch.device:
        return self.conditioner.device

    @property
    def classifier(self) -> NoisyClassifier | None:
        """The first of the classifiers."""
        return next((classifier.network for classifier in self.classifiers.values()), None)

    @property
    def learned_variance(self) -> bool:
        """Whether the U-Net predicts the variance of a step of `ddpm` too, in as many further channels."""
        return self.unet.config.out_channels == 2 * self.autoencoder.latent_channels

    @property
    def image_size(self) -> int:
        """Height and width of the images that the model was trained on."""
        return self.latent_size * self.autoencoder.factor

    @property
    def latent_size(self) -> int:
        """Height and width of the latents; `UserError` where the config of a foreign U-Net lacks it."""
        size = self.unet.config.sample_size
        if size is None:
            remedy = "write the side of its latents there"
            raise UserError("this model's unet/config.json has no sample_size", remedy=remedy)
        return size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of the U-Net, else of the classifiers, else of the guiding model, else none: ()."""
        if names := self.conditioner.class_names:
            return names
        if self.classifiers:
            return next(iter(self.classifiers.values())).class_names
        return self.guiding_model.conditioner.class_names if self.guiding_model else ()

    @property
    def has_text(self) -> bool:
        return self.conditioner.has_text

    @property
    def has_classes(self) -> bool:
        """Whether the U-Net itself is conditioned on class labels."""
        return self.conditioner.num_classes > 0

    @property
    def condition_dropout(self) -> float:
        """How often the condition was left out in training; 0 for an unconditional model."""
        return self.conditioner.dropout if self.has_text or self.has_classes else 0.0

    def class_index(self, name: str | int) -> int:
        """The number of a class from its name or number; `UserError` with the known names otherwise."""
        if not self.class_names:
            raise UserError(f"class {name!r}: this model knows no classes and has no classifier")
        return class_index(name, self.class_names)
