"""Losses of the autoencoder: reconstruction, perceptual, adversarial."""

import importlib
from typing import TYPE_CHECKING, Any

from autoencoders.losses.config import AdversarialConfig, DiscriminatorConfig, LossConfig, Objective, PerceptualConfig

if TYPE_CHECKING:
    from autoencoders.losses.adversarial import adaptive_weight
    from autoencoders.losses.perceptual import feature_distance
    from autoencoders.losses.reconstruction import LossOutput, autoencoder_loss

__all__ = [
    "AdversarialConfig", "DiscriminatorConfig", "LossConfig", "LossOutput", "Objective", "PerceptualConfig",
    "adaptive_weight", "autoencoder_loss", "feature_distance",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What needs torch is imported at its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'autoencoders.losses' has no attribute {name!r}")
    for module in ("adversarial", "perceptual", "reconstruction"):
        values = vars(importlib.import_module(f"autoencoders.losses.{module}"))
        globals().update({key: values[key] for key in __all__ if key in values and key not in globals()})
    return globals()[name]
