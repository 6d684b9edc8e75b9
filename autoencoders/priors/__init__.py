"""Priors over the codes of an autoencoder: gated PixelCNN and transformer, one network a level."""

from autoencoders.priors.base import CodePrior, PriorCondition, mask_codes
from autoencoders.priors.config import MAX_CODES, CodeGrid, CodeSampling, PriorConfig, PriorShape
from autoencoders.priors.pixelcnn import PixelCNN
from autoencoders.priors.priors import CodePriors
from autoencoders.priors.sampling import guided, probabilities, sample_codes, sample_indices
from autoencoders.priors.transformer import Transformer

__all__ = [
    "MAX_CODES", "CodeGrid", "CodePrior", "CodePriors", "CodeSampling", "PixelCNN", "PriorCondition", "PriorConfig",
    "PriorShape", "Transformer", "guided", "mask_codes", "probabilities", "sample_codes", "sample_indices",
]  # fmt: skip
