"""Neighbours in the space of features: how different samples of one condition are, and how near to training images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluation.metrics.manifold import squared_distances


@dataclass(frozen=True, slots=True)
class Nearest:
    """For each sample the number of the nearest training image and the distance to it, over that of held-out images.

    A `ratio` far below one says that a sample lies much nearer to a training image than images do that the model has
    never seen; (M,) each.
    """

    index: Tensor
    distance: Tensor
    ratio: Tensor


def nearest_training(train: Tensor, samples: Tensor, held_out: Tensor) -> Nearest:
    """Nearest neighbours of sample features (M, D) among training features (N, D).

    The yardstick is the median distance of held-out features (H, D) to their own nearest training features.
    """
    if not len(train) or not len(held_out):
        raise ValueError("expected at least one training and one held-out feature")
    distance, index = _nearest(samples, train)
    yardstick = _nearest(held_out, train)[0].median().clamp(min=1e-12)
    return Nearest(index, distance, distance / yardstick)


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
        found = squared_distances(features[numbers], features[numbers]).double().sqrt()
        total += float(found.triu(1).sum())
        pairs += len(numbers) * (len(numbers) - 1) // 2
    if not pairs:
        raise ValueError("diversity: expected two samples or more of some condition")
    return total / pairs


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each of a (N, D) to the nearest of b, and its number: (N,) each."""
    parts = [squared_distances(part, b).min(1) for part in a.split(1024)]
    distance = torch.cat([part.values for part in parts]).double().sqrt()
    return distance, torch.cat([part.indices for part in parts])
