"""Figures that can be defended: distances between images, accuracies, each with what it was measured on and by."""

from ldm.evaluation.autoencoder.config import AUTOENCODER_METRICS, AutoencoderEvaluationConfig
from ldm.evaluation.autoencoder.evaluate import evaluate_autoencoder, prepare_autoencoder_evaluators
from ldm.evaluation.config import METRICS, EvaluationConfig
from ldm.evaluation.evaluate import evaluate_model
from ldm.evaluation.evaluators import Evaluators, prepare_evaluators
from ldm.evaluation.features.extractors import Extractor, inception_extractor, trained_extractor
from ldm.evaluation.features.judge import Judge, trained_judge
from ldm.evaluation.folders import evaluate_folders
from ldm.evaluation.likelihood import Likelihood, LikelihoodConfig, measure_likelihood
from ldm.evaluation.metrics.frechet import Gaussian, frechet_distance
from ldm.evaluation.metrics.image_quality import psnr, ssim
from ldm.evaluation.metrics.kid import KernelDistance, kernel_distance
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.evaluation.references import ReferenceFile, save_reference

__all__ = [
    "AUTOENCODER_METRICS",
    "METRICS",
    "AutoencoderEvaluationConfig",
    "EvaluationConfig",
    "EvaluationResult",
    "Evaluators",
    "Extractor",
    "Gaussian",
    "Judge",
    "KernelDistance",
    "Likelihood",
    "LikelihoodConfig",
    "MetricValue",
    "ReferenceFile",
    "evaluate_autoencoder",
    "evaluate_folders",
    "evaluate_model",
    "frechet_distance",
    "inception_extractor",
    "kernel_distance",
    "measure_likelihood",
    "prepare_autoencoder_evaluators",
    "prepare_evaluators",
    "psnr",
    "save_reference",
    "ssim",
    "trained_extractor",
    "trained_judge",
]
