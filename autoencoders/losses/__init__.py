"""Losses of the autoencoder."""

from autoencoders.losses.adversarial import AdversarialConfig, DiscriminatorConfig, Objective, adaptive_weight
from autoencoders.losses.autoencoder import LossConfig, LossOutput, autoencoder_loss
from autoencoders.losses.perceptual import PerceptualConfig, feature_distance
from autoencoders.losses.reconstruction import huber, l1, l2

__all__ = [
    "AdversarialConfig",
    "DiscriminatorConfig",
    "LossConfig",
    "LossOutput",
    "Objective",
    "PerceptualConfig",
    "adaptive_weight",
    "autoencoder_loss",
    "feature_distance",
    "huber",
    "l1",
    "l2",
]
