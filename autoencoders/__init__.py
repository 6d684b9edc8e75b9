"""Pixels <-> latents: autoencoders with parameter names and folders of diffusers. Knows nothing of diffusion."""

from autoencoders.autoencoder import Autoencoder, AutoencoderOutput
from autoencoders.bottlenecks import BOTTLENECKS, Bottleneck, BottleneckOutput, Encoding
from autoencoders.config import AutoencoderConfig
from autoencoders.corruption import CorruptionConfig, corrupt, patch_mask
from autoencoders.diffusers_config import class_of
from autoencoders.fitting import fit_linear, measure_latents
from autoencoders.generator import Generator, GeneratorConfig
from autoencoders.losses import (
    AdversarialConfig,
    DiscriminatorConfig,
    LossConfig,
    LossOutput,
    PerceptualConfig,
    autoencoder_loss,
)
from autoencoders.losses.discriminator import PatchDiscriminator, ResidualDiscriminator, make_discriminator
from autoencoders.tiling import Tiling

__all__ = [
    "BOTTLENECKS",
    "AdversarialConfig",
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderOutput",
    "Bottleneck",
    "BottleneckOutput",
    "CorruptionConfig",
    "DiscriminatorConfig",
    "Encoding",
    "Generator",
    "GeneratorConfig",
    "LossConfig",
    "LossOutput",
    "PatchDiscriminator",
    "PerceptualConfig",
    "ResidualDiscriminator",
    "Tiling",
    "autoencoder_loss",
    "class_of",
    "corrupt",
    "fit_linear",
    "make_discriminator",
    "measure_latents",
    "patch_mask",
]
