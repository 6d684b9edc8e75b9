"""The metrics against torch-fidelity (where it is installed) and plain numpy; and the speed of the Frechet distance."""

import statistics
import time

import numpy as np
import pytest
import torch
from cleanfid import fid

from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.metrics.frechet import frechet_distance
from ldm.evaluation.metrics.kid import kernel_distance
from ldm.evaluation.metrics.manifold import Neighbourhoods
from ldm.evaluation.metrics.sample_scores import inception_score

# samples, dimensions, rank: more samples than dimensions, fewer, and features on a plane of few directions
SHAPES = [(400, 48, 48), (40, 96, 96), (300, 60, 7), (30, 80, 5)]


def features(n, d, rank, seed, shift=0.0):
    generator = np.random.default_rng(seed)
    plane = np.random.default_rng(99).normal(size=(rank, d)) * np.logspace(0, -2, rank)[:, None]
    return torch.from_numpy(generator.normal(loc=shift, size=(n, rank)) @ plane)


def pair(n, d, rank):
    return features(n, d, rank, 1), 1.2 * features(n, d, rank, 2, shift=0.2)


@pytest.mark.parametrize(("n", "d", "rank"), SHAPES)
def test_the_frechet_distance_is_torch_fidelitys(n, d, rank):
    theirs = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = pair(n, d, rank)
    moments = [theirs.fid_features_to_statistics(x) for x in (a, b)]
    expected = theirs.fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]
    near = 1e-6 if rank == d else 1e-5  # of rank-deficient covariances theirs adds the roots of 53 rounding errors
    assert frechet_distance(Gaussian.fit(a), Gaussian.fit(b)) == pytest.approx(expected, rel=near)


@pytest.mark.parametrize(("n", "d", "rank"), SHAPES)
def test_the_frechet_distance_is_the_eigenvalue_formula(n, d, rank):
    """tr (C1 C2)^(1/2) from the eigenvalues of the product itself, which is not symmetric, in numpy: as many as the
    features have directions, for the others are rounding errors whose roots would count."""
    a, b = pair(n, d, rank)
    c, e = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    values = np.sort(np.linalg.eigvals(c @ e).real)[-min(rank, n - 1) :]
    cross = np.sqrt(values).sum()
    gap = a.numpy().mean(0) - b.numpy().mean(0)
    expected = gap @ gap + np.trace(c) + np.trace(e) - 2 * cross
    assert frechet_distance(Gaussian.fit(a), Gaussian.fit(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d", "rank"), SHAPES)
def test_the_kernel_distance_is_its_definition_pair_by_pair(n, d, rank):
    a, b = (x[:40].numpy() for x in pair(n, d, rank))

    def k(u, v):
        return (sum(p * q for p, q in zip(u, v, strict=True)) / d + 1) ** 3

    m = len(a)
    within = sum(k(x[i], x[j]) for x in (a, b) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(k(u, v) for u in a for v in b) / m**2
    found = kernel_distance(torch.from_numpy(a), torch.from_numpy(b)).value
    assert found == pytest.approx(within - 2 * across, rel=1e-6)


@pytest.mark.parametrize(("n", "d", "rank"), SHAPES)
def test_kernel_distance_precision_and_recall_are_torch_fidelitys(n, d, rank):
    kid, prc = (pytest.importorskip(f"torch_fidelity.metric_{name}") for name in ("kid", "prc"))
    a, b = pair(n, d, rank)
    expected = kid.kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=n, verbose=False)
    assert kernel_distance(a, b).value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    expected = prc.prc_features_to_metric(b, a, prc_neighborhood=3, prc_batch_size=1000, verbose=False)
    found = Neighbourhoods(a, b).scores()
    assert found["precision"] == pytest.approx(expected["precision"], rel=1e-4)
    assert found["recall"] == pytest.approx(expected["recall"], rel=1e-4)


@pytest.mark.parametrize(("n", "k"), [(500, 7), (40, 100)])
def test_the_inception_score_is_torch_fidelitys(n, k):
    theirs = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 2 * features(n, k, min(n, k), 5)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))  # theirs is drawn by numpy
    expected = theirs.isc_features_to_metric(logits[order], splits=10, shuffle=False)
    found = inception_score(logits.softmax(1), seed=3)
    assert found.value == pytest.approx(expected["inception_score_mean"], rel=1e-4)
    assert found.standard_error == pytest.approx(expected["inception_score_std"] / 3, rel=1e-4)  # n - 1 in place of n


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("n", "least", "rounds"), [(5000, 5, 3), (1000, 20, 3)])
def test_the_frechet_distance_at_2048_dimensions_is_faster_than_clean_fids(n, least, rounds):
    """Processor time, in turns: of many samples from both moments, of fewer than dimensions from the features."""
    generator = np.random.default_rng(0)
    turned = np.linalg.qr(generator.normal(size=(2048, 2048)))[0] * np.logspace(0, -3, 2048)[:, None]
    a, b = (torch.from_numpy(generator.normal(loc=shift, size=(n, 2048)) @ turned) for shift in (0, 0.1))
    moments = [(x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)) for x in (a, b)]
    tensors = [(torch.from_numpy(mean), torch.from_numpy(covariance)) for mean, covariance in moments]
    reference, ratios = Gaussian.fit(a), []
    for _ in range(rounds):
        start = time.process_time()
        if n > 2048:
            ours = frechet_distance(*(Gaussian.from_moments(*each, n) for each in tensors))
        else:
            ours = frechet_distance(reference, Gaussian.fit(b))
        between = time.process_time()
        if n <= 2048:
            moments[1] = b.numpy().mean(0), np.cov(b.numpy(), rowvar=False)
        theirs = fid.frechet_distance(*moments[0], *moments[1])
        ratios.append((time.process_time() - between) / (between - start))
        assert ours == pytest.approx(theirs, rel=1e-5)
    print(f"N = {n}: {statistics.median(ratios):.1f} times as fast as clean-fid, {sorted(ratios)}")
    assert statistics.median(ratios) >= least
