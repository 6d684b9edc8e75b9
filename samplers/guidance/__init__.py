"""Guidances: frozen dataclasses that change a Prediction with the help of its other branches."""

from samplers.guidance.base import ScaledDifferenceGuidance
from samplers.guidance.classifier import Classifier, energy
from samplers.guidance.classifier_free import (
    CFGPlusPlus,
    ClassifierFree,
    autoguidance,
    perturbed_attention,
    skip_layer,
    smoothed_energy,
)
from samplers.guidance.energies import colour, inpainting, similarity, with_energy
from samplers.guidance.frequency import FrequencyDecoupled
from samplers.guidance.guide import guide
from samplers.guidance.projected import AdaptiveProjected, Tangential, ZeroStar
from samplers.guidance.rescale import DynamicThreshold, Keep, Rescale

__all__ = [
    "AdaptiveProjected",
    "CFGPlusPlus",
    "Classifier",
    "ClassifierFree",
    "DynamicThreshold",
    "FrequencyDecoupled",
    "Keep",
    "Rescale",
    "ScaledDifferenceGuidance",
    "Tangential",
    "ZeroStar",
    "autoguidance",
    "colour",
    "energy",
    "guide",
    "inpainting",
    "perturbed_attention",
    "similarity",
    "skip_layer",
    "smoothed_energy",
    "with_energy",
]
