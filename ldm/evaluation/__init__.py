"""Figures that can be defended: distances between images, accuracies, each with what it was measured on and by."""

from ldm.evaluation.autoencoder import evaluate_autoencoder, prepare_autoencoder_instruments
from ldm.evaluation.autoencoder_config import AUTOENCODER_METRICS, AutoencoderEvaluationConfig
from ldm.evaluation.config import METRICS, EvaluationConfig
from ldm.evaluation.evaluate import evaluate_folders, evaluate_model, prepare_instruments
from ldm.evaluation.features import Extractor, inception_extractor, trained_extractor
from ldm.evaluation.frechet import Gaussian, frechet_distance
from ldm.evaluation.image_quality import psnr, ssim
from ldm.evaluation.judge import Judge, trained_judge
from ldm.evaluation.kid import KernelDistance, kernel_distance
from ldm.evaluation.likelihood import Likelihood, LikelihoodConfig, measure_likelihood
from ldm.evaluation.measure import Instruments
from ldm.evaluation.records import EvaluationResult, Figure

__all__ = [
    "AUTOENCODER_METRICS",
    "METRICS",
    "AutoencoderEvaluationConfig",
    "EvaluationConfig",
    "EvaluationResult",
    "Extractor",
    "Figure",
    "Gaussian",
    "Instruments",
    "Judge",
    "KernelDistance",
    "Likelihood",
    "LikelihoodConfig",
    "evaluate_autoencoder",
    "evaluate_folders",
    "evaluate_model",
    "frechet_distance",
    "inception_extractor",
    "kernel_distance",
    "measure_likelihood",
    "prepare_autoencoder_instruments",
    "prepare_instruments",
    "psnr",
    "ssim",
    "trained_extractor",
    "trained_judge",
]
