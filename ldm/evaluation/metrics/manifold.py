"""How much of the samples lies where the data is, and how much of the data the samples reach.

Precision and recall: Kynkaanniemi et al. 2019, arXiv:1904.06991, eqs. 1 and 2. Density and coverage: Naeem et al. 2020,
arXiv:2002.09797, eqs. 3 and 4. All four count which features lie in which balls; a ball reaches from a feature to
its k-th nearest neighbour of the same set.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.intervals import half_samples
from ldm.evaluation.metrics.base import SampleMetric, Samples
from ldm.evaluation.metrics.neighbours import squared_distances
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import metrics

PRECISION_K, DENSITY_K = 3, 5  # of the papers
MOST = 10_000  # features a side: the distances of so many to so many take 0.4 GB


class Neighbourhoods:
    """Squared distances of real features (N, D) and fake ones (M, D), from which scores of all or of a part follow.

    Raises `ValueError` for other shapes, and for fewer than six features in a set.
    """

    def __init__(self, real: Tensor, fake: Tensor) -> None:
        if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
            raise ValueError(f"expected features (N, D) and (M, D), got {tuple(real.shape)} and {tuple(fake.shape)}")
        if min(len(real), len(fake)) <= DENSITY_K:
            raise ValueError(f"expected more than {DENSITY_K} features a set, got {len(real)} and {len(fake)}")
        if max(len(real), len(fake)) > MOST:
            raise ValueError(f"expected at most {MOST} features a set, got {len(real)} and {len(fake)}")
        self.across = squared_distances(fake, real)  # (M, N)
        self.within_fake = squared_distances(fake, fake)
        self.real_radii = {k: radii(squared_distances(real, real), k) for k in (PRECISION_K, DENSITY_K)}

    def scores(self, chosen: Tensor | None = None) -> dict[str, float]:
        """Of all fake features, or of those with the numbers `chosen`, by metric.

        Precision, recall and coverage in [0, 1]; density from 0, 1 on average where the distributions agree.
        """
        across = self.across if chosen is None else self.across[chosen]
        within = self.within_fake if chosen is None else self.within_fake[chosen][:, chosen]
        inside = across <= self.real_radii[DENSITY_K]  # (M, N): fake j in the ball of real i
        return {
            "precision": float((across <= self.real_radii[PRECISION_K]).any(1).double().mean()),
            "recall": float((across <= radii(within, PRECISION_K)[:, None]).any(0).double().mean()),
            "density": float(inside.double().sum(1).mean()) / DENSITY_K,
            "coverage": float(inside.any(0).double().mean()),
        }


def radii(within: Tensor, k: int) -> Tensor:
    """The squared distance of each to its k-th nearest neighbour, from all distances (N, N) within a set: (N,)."""
    return within.kthvalue(k + 1, dim=1).values  # the nearest is itself


@metrics.register("precision")
@metrics.register("recall")
@metrics.register("density")
@metrics.register("coverage")
class ManifoldMetric(SampleMetric):
    """One of the four, which share their distances."""

    least_images = least_reference = 2 * DENSITY_K + 1
    higher_is_better = True

    def measure(self, samples: Samples, config: EvaluationConfig) -> MetricValue:
        whole, parts = samples.once(_scores, config)
        value = self.value(samples, whole[self.name], [part[self.name] for part in parts])
        if value.interval is None or self.name == "density":
            return value
        low, high = value.interval  # of a share, which lies in [0, 1]
        return replace(value, interval=(max(low, 0.0), min(high, 1.0)))


def _scores(samples: Samples, config: EvaluationConfig) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Of all samples, and of their halves."""
    real, fake = (_at_most(features, MOST, config.seed) for features in (samples.real_features, samples.fake))
    neighbourhoods = Neighbourhoods(real, fake)
    halves = half_samples(len(fake), config.bootstrap, seed=config.seed, device=fake.device)
    return neighbourhoods.scores(), [neighbourhoods.scores(half) for half in halves]


def _at_most(features: Tensor, most: int, seed: int) -> Tensor:
    if len(features) <= most:
        return features
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:most]
    return features[chosen.to(features.device)]
