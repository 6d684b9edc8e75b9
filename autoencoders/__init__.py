"""Pixels <-> latents: autoencoders with parameter names and folders of diffusers. Knows nothing of diffusion."""

import importlib
from typing import TYPE_CHECKING, Any

from autoencoders.bottlenecks import BottleneckConfig, bottleneck, bottlenecks
from autoencoders.config import AutoencoderConfig, CorruptionConfig, GeneratorConfig, Tiling
from autoencoders.losses.config import AdversarialConfig, DiscriminatorConfig, LossConfig, PerceptualConfig

if TYPE_CHECKING:
    from autoencoders.autoencoder import Autoencoder
    from autoencoders.bottlenecks.base import Bottleneck, BottleneckOutput, Encoding
    from autoencoders.corruption import corrupt, patch_mask
    from autoencoders.diffusers_config import class_of
    from autoencoders.fitting import fit_linear, measure_latents
    from autoencoders.generator import Generator
    from autoencoders.losses.discriminator import PatchDiscriminator, ResidualDiscriminator, make_discriminator
    from autoencoders.losses.reconstruction import LossOutput, autoencoder_loss
    from autoencoders.measures import AutoencoderOutput

__all__ = [
    "AdversarialConfig", "Autoencoder", "AutoencoderConfig", "AutoencoderOutput", "Bottleneck", "BottleneckConfig",
    "BottleneckOutput", "CorruptionConfig", "DiscriminatorConfig", "Encoding", "Generator", "GeneratorConfig",
    "LossConfig", "LossOutput", "PatchDiscriminator", "PerceptualConfig", "ResidualDiscriminator", "Tiling",
    "autoencoder_loss", "bottleneck", "bottlenecks", "class_of", "corrupt", "fit_linear", "make_discriminator",
    "measure_latents", "patch_mask",
]  # fmt: skip
_WITH_TORCH = (
    "autoencoder", "bottlenecks.base", "corruption", "diffusers_config", "fitting", "generator",
    "losses.discriminator", "losses.reconstruction", "measures",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """What needs torch is imported at its first use, so that settings are parsed and refused without it."""
    if name not in __all__:
        raise AttributeError(f"module 'autoencoders' has no attribute {name!r}")
    for module in _WITH_TORCH:
        values = vars(importlib.import_module(f"autoencoders.{module}"))
        globals().update({key: values[key] for key in __all__ if key in values and key not in globals()})
    return globals()[name]
