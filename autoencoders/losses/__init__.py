"""Losses of the autoencoder."""

from autoencoders.losses.autoencoder import LossConfig, LossOutput, autoencoder_loss
from autoencoders.losses.reconstruction import RECONSTRUCTIONS, l1, l2

__all__ = ["RECONSTRUCTIONS", "LossConfig", "LossOutput", "autoencoder_loss", "l1", "l2"]
