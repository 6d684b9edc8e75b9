"""Neighbours in the space of features: how different samples of one condition are, and how near to training images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from autoencoders.importance import to_float64
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.metrics.base import SampleMetric, Samples
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import metrics

_ROWS = 1024


@metrics.register("diversity")
class Diversity(SampleMetric):
    higher_is_better = True

    def measure(self, samples: Samples, config: EvaluationConfig) -> MetricValue:
        groups = list(samples.groups) or [0] * len(samples.fake)
        if len(set(groups)) == len(groups):
            raise self.refusal("no condition has two images", "draw more of them, or of fewer conditions")
        halves = []
        for half in samples.halves(config):
            chosen = [groups[row] for row in half.tolist()]
            if len(set(chosen)) < len(chosen):
                halves.append(diversity(samples.fake[half], chosen))
        return self.value(samples, diversity(samples.fake, groups), halves)


def diversity(features: Tensor, groups: Sequence[Hashable]) -> float:
    """Mean distance of two samples of one condition: features (N, D), `groups` the condition of each.

    Every pair counts once and every condition by its number of pairs, as in the LPIPS diversity of Zhu et al. 2017
    (arXiv:1711.11586, section 5.1), with these features in place of theirs. `ValueError` where no condition has two.
    """
    if len(groups) != len(features):
        raise ValueError(f"expected one group a feature, got {len(groups)} for {len(features)}")
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    total, pairs = 0.0, 0
    for numbers in members.values():
        if len(numbers) < 2:
            continue
        distances = squared_distances(features[numbers], features[numbers]).double().sqrt()
        total += float(distances.triu(1).sum())
        pairs += len(numbers) * (len(numbers) - 1) // 2
    if not pairs:
        raise ValueError("diversity: expected two samples or more of some condition")
    return total / pairs


def nearest_distances(a: Tensor, b: Tensor) -> Tensor:
    """Distance of each of a (N, D) to the nearest of b: (N,)."""
    return torch.cat([squared_distances(part, b).amin(1) for part in a.split(1024)]).double().sqrt()


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 of features (N, D) and (M, D): (N, M), float32 of sums taken in float64."""
    a, b = (to_float64(x) for x in (a, b))
    squares = b.square().sum(1)
    parts = [(part.square().sum(1)[:, None] + squares - 2 * part @ b.T).clamp(min=0).float() for part in a.split(_ROWS)]
    return torch.cat(parts)
