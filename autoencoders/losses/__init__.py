"""Losses of the autoencoder: reconstruction, perceptual, adversarial."""

from autoencoders.losses.adversarial import adaptive_weight
from autoencoders.losses.config import AdversarialConfig, DiscriminatorConfig, LossConfig, Objective, PerceptualConfig
from autoencoders.losses.perceptual import feature_distance
from autoencoders.losses.reconstruction import LossOutput, autoencoder_loss

__all__ = [
    "AdversarialConfig", "DiscriminatorConfig", "LossConfig", "LossOutput", "Objective", "PerceptualConfig",
    "adaptive_weight", "autoencoder_loss", "feature_distance",
]  # fmt: skip
