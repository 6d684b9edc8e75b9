"""Pixels <-> latents: autoencoders with parameter names and folders of diffusers. Knows nothing of diffusion."""

from autoencoders.autoencoder import Autoencoder
from autoencoders.bottlenecks import BottleneckConfig, bottleneck, bottlenecks
from autoencoders.bottlenecks.base import Bottleneck, BottleneckOutput, Encoding
from autoencoders.config import AutoencoderConfig, CorruptionConfig, GeneratorConfig, Tiling
from autoencoders.corruption import corrupt, patch_mask
from autoencoders.diffusers_config import class_of
from autoencoders.fitting import fit_linear, measure_latents
from autoencoders.generator import Generator
from autoencoders.losses import (
    AdversarialConfig,
    DiscriminatorConfig,
    LossConfig,
    LossOutput,
    PerceptualConfig,
    autoencoder_loss,
)
from autoencoders.losses.discriminator import PatchDiscriminator, ResidualDiscriminator, make_discriminator
from autoencoders.measures import AutoencoderOutput

__all__ = [
    "AdversarialConfig", "Autoencoder", "AutoencoderConfig", "AutoencoderOutput", "Bottleneck", "BottleneckConfig",
    "BottleneckOutput", "CorruptionConfig", "DiscriminatorConfig", "Encoding", "Generator", "GeneratorConfig",
    "LossConfig", "LossOutput", "PatchDiscriminator", "PerceptualConfig", "ResidualDiscriminator", "Tiling",
    "autoencoder_loss", "bottleneck", "bottlenecks", "class_of", "corrupt", "fit_linear", "make_discriminator",
    "measure_latents", "patch_mask",
]  # fmt: skip
