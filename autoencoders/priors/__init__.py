"""Priors over the codes of an autoencoder: gated PixelCNN and transformer, one network a level."""

import importlib
from typing import TYPE_CHECKING, Any

from autoencoders.priors.config import MAX_CODES, CodeGrid, CodeSampling, PriorConfig, PriorShape

if TYPE_CHECKING:
    from autoencoders.priors.base import CodePrior, PriorCondition, mask_codes
    from autoencoders.priors.pixelcnn import PixelCNN
    from autoencoders.priors.priors import CodePriors
    from autoencoders.priors.sampling import guided, probabilities, sample_codes, sample_indices
    from autoencoders.priors.transformer import Transformer

__all__ = [
    "MAX_CODES", "CodeGrid", "CodePrior", "CodePriors", "CodeSampling", "PixelCNN", "PriorCondition", "PriorConfig",
    "PriorShape", "Transformer", "guided", "mask_codes", "probabilities", "sample_codes", "sample_indices",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What needs torch is imported at its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'autoencoders.priors' has no attribute {name!r}")
    for module in ("base", "pixelcnn", "priors", "sampling", "transformer"):
        values = vars(importlib.import_module(f"autoencoders.priors.{module}"))
        globals().update({key: values[key] for key in __all__ if key in values and key not in globals()})
    return globals()[name]
