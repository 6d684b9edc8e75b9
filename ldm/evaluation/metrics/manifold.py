"""How much of the samples lies where the data is, and how much of the data the samples reach.

Precision and recall: Kynkaanniemi et al. 2019, arXiv:1904.06991, eqs. 1 and 2. Density and coverage: Naeem et al. 2020,
arXiv:2002.09797, eqs. 3 and 4. All four ask which features lie in which balls, a ball reaching from a feature to its
k-th nearest neighbour of the same set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PRECISION_K, DENSITY_K = 3, 5  # of the papers
MOST = 10_000  # features a side: the distances of so many to so many take 0.4 GB
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class ManifoldScores:
    """Precision, recall and coverage in [0, 1]; density from 0, of the data's own law 1 on average."""

    precision: float
    recall: float
    density: float
    coverage: float


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

    def scores(self, chosen: Tensor | None = None) -> ManifoldScores:
        """Of all fake features, or of those with the numbers `chosen`."""
        across = self.across if chosen is None else self.across[chosen]
        within = self.within_fake if chosen is None else self.within_fake[chosen][:, chosen]
        inside = across <= self.real_radii[DENSITY_K]  # (M, N): fake j in the ball of real i
        return ManifoldScores(
            precision=float((across <= self.real_radii[PRECISION_K]).any(1).double().mean()),
            recall=float((across <= radii(within, PRECISION_K)[:, None]).any(0).double().mean()),
            density=float(inside.double().sum(1).mean()) / DENSITY_K,
            coverage=float(inside.any(0).double().mean()),
        )


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 of features (N, D) and (M, D): (N, M), float32 of sums taken in float64."""
    a, b = ((x.cpu() if x.device.type == "mps" else x).double() for x in (a, b))
    squares = b.square().sum(1)
    parts = [(part.square().sum(1)[:, None] + squares - 2 * part @ b.T).clamp(min=0).float() for part in a.split(_ROWS)]
    return torch.cat(parts)


def radii(within: Tensor, k: int) -> Tensor:
    """The squared distance of each to its k-th nearest neighbour, from all distances (N, N) within a set: (N,)."""
    return within.kthvalue(k + 1, dim=1).values  # the nearest is itself
