"""What a classifier's probabilities tell: the Inception score, and how far its confidence can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class InceptionScore:
    """Mean over the splits, and the standard error of that mean."""

    value: float
    standard_error: float


def inception_score(probabilities: Tensor, *, splits: int = 10, seed: int = 0) -> InceptionScore:
    """exp of the mean KL(p(y | x) || p(y)) (Salimans et al. 2016, arXiv:1606.03498, section 4).

    Probabilities (N, K) with rows that sum to one; N is shuffled by `seed` and cut into `splits` parts, each with its
    own p(y), as the paper does. From 1 (every image alike, or no opinion) to K.
    """
    if probabilities.ndim != 2 or len(probabilities) < splits or splits < 1:
        raise ValueError(f"expected probabilities (N, K) with N >= {splits} splits, got {tuple(probabilities.shape)}")
    p = (probabilities.cpu() if probabilities.device.type == "mps" else probabilities).double()
    if not torch.allclose(p.sum(1), torch.ones_like(p[:, 0]), atol=1e-4):
        raise ValueError("probabilities: expected rows that sum to 1")
    p = p[torch.randperm(len(p), generator=torch.Generator().manual_seed(seed)).to(p.device)]
    found = []
    for part in p.tensor_split(splits):
        marginal = part.mean(0)
        found.append((torch.special.xlogy(part, part) - torch.special.xlogy(part, marginal)).sum(1).mean().exp())
    scores = torch.stack(found)
    error = float(scores.std() / splits**0.5) if splits > 1 else float("nan")
    return InceptionScore(float(scores.mean()), error)


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3): mean |accuracy - confidence| over bins.

    Probabilities (N, K), labels (N,) the right classes; bins of equal width in the confidence, by their numbers.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(f"expected (N, K) and (N,), got {tuple(probabilities.shape)} and {tuple(labels.shape)}")
    confidence, chosen = probabilities.double().cpu().max(1)
    right = (chosen == labels.cpu()).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return float(sums.abs().sum() / len(labels))
