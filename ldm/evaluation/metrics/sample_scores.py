"""Scores of each sample by another network: the Inception score by a judge's classes, the CLIP score by captions."""

from __future__ import annotations

import torch
from torch import Tensor

from autoencoders.importance import to_float64
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.metrics.base import SampleMetric, Samples
from ldm.evaluation.records import Estimate, MetricValue
from ldm.evaluation.registry import metrics


@metrics.register("inception_score")
class InceptionScoreMetric(SampleMetric):
    higher_is_better = True

    def measure(self, samples: Samples, config: EvaluationConfig) -> MetricValue:
        if samples.class_probs is None:
            raise self.refusal("needs a judge of classes, which this data does not give")
        splits = min(10, len(samples.class_probs) // 2)
        score = inception_score(samples.class_probs, splits=splits, seed=config.seed)
        return self.value(samples, score, name=f"IS[{samples.judge}]")


@metrics.register("clip_score")
class ClipScore(SampleMetric):
    """How well images fit their captions, see `ClipScorer`: the mean over samples, with its standard error."""

    higher_is_better = True

    def measure(self, samples: Samples, config: EvaluationConfig) -> MetricValue:
        scores = samples.text_scores
        if scores is None:
            raise self.refusal("needs captions, which this model does not take")
        mean = Estimate(float(scores.double().mean()), float(scores.double().std() / len(scores) ** 0.5))
        halves = [float(scores[half.to(scores.device)].mean()) for half in samples.halves(config)]
        return self.value(samples, mean, halves, name=f"CLIP score[{samples.clip}]")


def inception_score(probabilities: Tensor, *, splits: int = 10, seed: int = 0) -> Estimate:
    """exp of the mean KL(p(y | x) || p(y)) (Salimans et al. 2016, arXiv:1606.03498, section 4).

    Probabilities (N, K) with rows that sum to one; N is shuffled by `seed` and cut into `splits` parts, each with its
    own p(y), as the paper does. From 1 (every image alike, or uniform probabilities) to K. The mean over the parts
    with its standard error.
    """
    if probabilities.ndim != 2 or len(probabilities) < splits or splits < 1:
        raise ValueError(f"expected probabilities (N, K) with N >= {splits} splits, got {tuple(probabilities.shape)}")
    p = to_float64(probabilities)
    if not torch.allclose(p.sum(1), torch.ones_like(p[:, 0]), atol=1e-4):
        raise ValueError("probabilities: expected rows that sum to 1")
    p = p[torch.randperm(len(p), generator=torch.Generator().manual_seed(seed)).to(p.device)]
    scores = []
    for part in p.tensor_split(splits):
        marginal = part.mean(0)
        scores.append((torch.special.xlogy(part, part) - torch.special.xlogy(part, marginal)).sum(1).mean().exp())
    values = torch.stack(scores)
    error = float(values.std() / splits**0.5) if splits > 1 else float("nan")
    return Estimate(float(values.mean()), error)
