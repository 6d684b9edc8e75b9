import numpy as np
import pytest
import torch
from cleanfid import fid
from scipy import linalg

from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.metrics import kid
from ldm.evaluation.metrics.frechet import frechet_distance
from ldm.evaluation.metrics.kid import kernel_distance


def normal(n, d, seed, mix_seed=0):
    """Correlated features whose deviations span three decades."""
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(mix_seed), dtype=torch.float64)
    mix = mix * torch.logspace(0, -3, d, dtype=torch.float64)[:, None]
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ mix


def distance(a, b):
    return frechet_distance(Gaussian.fit(a), Gaussian.fit(b))


def symmetric_formula(a, b):
    """tr (C1^1/2 C2 C1^1/2)^1/2 by scipy's square roots."""
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a.numpy(), b.numpy()))
    values, vectors = linalg.eigh(c1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(linalg.eigvalsh(root @ c2 @ root).clip(0)).sum()
    return ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross


@pytest.mark.parametrize(("n", "m"), [(500, 400), (90, 70), (30, 40), (30, 500), (500, 30)])
def test_frechet_distance_equals_clean_fid_and_the_symmetric_formula(n, m):
    a, b = normal(n, 64, 1), normal(m, 64, 2, mix_seed=3) + 0.1
    found = distance(a, b)
    assert found == pytest.approx(fid.fid_from_feats(a.numpy(), b.numpy()), rel=1e-6)
    assert found == pytest.approx(symmetric_formula(a, b), rel=1e-6)
    assert distance(b, a) == pytest.approx(found, rel=1e-10)


@pytest.mark.parametrize("rank", [1, 10, 40])
def test_frechet_distance_of_rank_deficient_covariances_is_exact(rank):
    """C1 = Q diag(s^2) Q^T, C2 = Q diag(t^2) Q^T commute: FD = |mu|^2 + sum (s - t)^2."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0]
    s, t = torch.rand(2, 40, generator=generator, dtype=torch.float64)
    s[rank:], t[: rank // 2] = 0, 0
    mean = torch.zeros(40, dtype=torch.float64)
    a, b = (Gaussian.from_moments(mean + k, q * x**2 @ q.T, 100) for k, x in ((0, s), (0.5, t)))
    assert frechet_distance(a, b) == pytest.approx(float(40 * 0.25 + ((s - t) ** 2).sum()), rel=1e-9)


def test_dead_and_duplicate_features_do_no_harm():
    a, b = normal(300, 20, 1), normal(300, 20, 2) + 0.2
    wide = [torch.cat([x, x[:, :5], torch.zeros(300, 3, dtype=x.dtype)], 1) for x in (a, b)]
    assert distance(*wide) == pytest.approx(symmetric_formula(*wide), rel=1e-6)


def test_identical_features_are_at_distance_zero_and_a_shift_at_its_square():
    a = normal(200, 64, 1).float()
    scale = float(a.var(0).sum())
    assert abs(distance(a, a)) < 1e-9 * scale
    assert distance(a, a + 0.25) == pytest.approx(64 * 0.0625, rel=1e-5)
    few = normal(20, 64, 1)
    assert abs(distance(few, few)) < 1e-9 * scale


def test_frechet_distance_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="N >= 2"):
        Gaussian.fit(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="not finite"):
        Gaussian.fit(torch.tensor([[0.0, 1], [float("nan"), 2]]))
    with pytest.raises(ValueError, match="different extractors"):
        distance(torch.rand(9, 4), torch.rand(9, 5))


def test_kernel_distance_of_the_whole_equals_clean_fid():
    a, b = normal(120, 16, 1), normal(120, 16, 2) + 0.3
    assert kernel_distance(a, b).value == pytest.approx(fid.kernel_distance(a.numpy(), b.numpy(), 1), rel=1e-10)


def test_kernel_distance_of_subsets_equals_clean_fid_on_the_same_subsets(monkeypatch):
    a, b = normal(150, 16, 1), normal(200, 16, 2) + 0.3
    found = kernel_distance(a, b, seed=5, num_subsets=7, max_subset_size=50)
    generator = torch.Generator().manual_seed(5)
    drawn = []
    for _ in range(7):  # clean-fid draws from its second argument first
        i, j = (torch.randperm(n, generator=generator)[:50].numpy() for n in (150, 200))
        drawn += [j, i]
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: drawn.pop(0))
    assert found.value == pytest.approx(fid.kernel_distance(a.numpy(), b.numpy(), 7, 50), rel=1e-10)
    monkeypatch.setattr(kid, "_WHOLE", 0)  # the way of samples too many for one kernel of all pairs
    again = kernel_distance(a, b, seed=5, num_subsets=7, max_subset_size=50)
    assert again.value == pytest.approx(found.value, rel=1e-10)


@pytest.mark.parametrize("limit", [60, 1000])
def test_the_standard_error_of_the_kernel_distance_is_the_scatter_over_fresh_samples(limit):
    results = [
        kernel_distance(normal(240, 8, 2 * k), normal(240, 8, 2 * k + 1) + 0.4, seed=k, max_subset_size=limit)
        for k in range(60)
    ]
    scatter = np.std([result.value for result in results])
    assert np.mean([result.standard_error for result in results]) == pytest.approx(scatter, rel=0.35)


def test_distances_are_repeatable_and_leave_global_random_states_alone():
    a, b = normal(150, 8, 1), normal(200, 8, 2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert kernel_distance(a, b, max_subset_size=50) == kernel_distance(a, b, max_subset_size=50)
    assert kernel_distance(a, b, max_subset_size=50) != kernel_distance(a, b, seed=1, max_subset_size=50)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
