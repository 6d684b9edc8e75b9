"""Precision to diversity: against brute force in numpy, closed forms, and what each must do when samples go wrong."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.extractors import Extractor
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.intervals import half_samples, interval
from ldm.evaluation.metrics.base import Samples, measure_samples
from ldm.evaluation.metrics.calibration import calibration_error
from ldm.evaluation.metrics.frechet import (
    distance_of_slices,
    extrapolated_frechet_distance,
    frechet_distance,
    slices_of,
)
from ldm.evaluation.metrics.manifold import Neighbourhoods
from ldm.evaluation.metrics.neighbours import diversity, nearest_distances
from ldm.evaluation.metrics.sample_scores import inception_score
from ldm.runtime.errors import UserError


def normal(n, d, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scale + shift


class Toy(Extractor):
    name, dim, preprocessing = "toy", 8, "none"


def brute_force(real, fake):
    """The definitions, pair by pair."""

    def radius(features, k):
        return [sorted(np.linalg.norm(features - each, axis=1))[k] for each in features]

    r3, r5, f3 = radius(real, 3), radius(real, 5), radius(fake, 3)
    distance = [[np.linalg.norm(f - r) for r in real] for f in fake]
    n, m = len(real), len(fake)
    precision = sum(any(distance[j][i] <= r3[i] for i in range(n)) for j in range(m)) / m
    recall = sum(any(distance[j][i] <= f3[j] for j in range(m)) for i in range(n)) / n
    density = sum(distance[j][i] <= r5[i] for i in range(n) for j in range(m)) / (5 * m)
    coverage = sum(any(distance[j][i] <= r5[i] for j in range(m)) for i in range(n)) / n
    return precision, recall, density, coverage


@pytest.mark.parametrize(("n", "m", "d", "rank"), [(60, 80, 4, 4), (30, 25, 50, 50), (50, 40, 20, 3)])
def test_the_manifold_scores_are_their_definitions(n, m, d, rank):
    base = normal(rank, d, 9)
    real, fake = normal(n, rank, 1) @ base, normal(m, rank, 2, scale=0.8, shift=0.3) @ base
    found = Neighbourhoods(real, fake).scores()
    expected = brute_force(real.numpy(), fake.numpy())
    assert tuple(found.values()) == pytest.approx(expected, abs=1e-12)
    chosen = torch.arange(0, m, 2)
    part = Neighbourhoods(real, fake).scores(chosen)
    expected = brute_force(real.numpy(), fake[chosen].numpy())
    assert tuple(part.values()) == pytest.approx(expected, abs=1e-12)


def test_each_score_moves_the_way_that_it_should():
    """Rows: what is wrong with the samples; columns: which way the scores go against samples of the data's own law."""

    def classes(seed):
        return normal(400, 6, seed) + torch.tensor([5.0, -5.0]).repeat(200)[:, None] * torch.eye(6)[:1]  # two

    real = classes(0)

    def scores(fake):
        found = Neighbourhoods(real, fake).scores()
        fd = frechet_distance(Gaussian.fit(real), Gaussian.fit(fake))
        return np.array([fd, *found.values()])

    own = classes(1)
    base = scores(own)
    assert base[1] > 0.8 and base[2] > 0.8 and base[3] == pytest.approx(1, abs=0.15) and base[4] > 0.9
    centres = own.sign() * torch.tensor([5.0, 0, 0, 0, 0, 0])
    noisy, narrow = scores(own + 2 * normal(400, 6, 2)), scores(centres + 0.4 * (own - centres))
    dropped = scores(own * torch.cat([own[:, :1].sign(), torch.ones(400, 5)], 1))  # a class is never drawn
    doubled = scores(own[:100].repeat(4, 1) + 1e-4 * normal(400, 6, 3))  # a quarter, four times
    assert noisy[0] > 5 * base[0] and noisy[1] < 0.7 * base[1] and noisy[3] < 0.7 * base[3]
    assert narrow[0] > 2 * base[0] and narrow[1] >= base[1] and narrow[2] < 0.6 * base[2] and narrow[3] > 1.3 * base[3]
    assert dropped[0] > 5 * base[0] and dropped[1] > 0.8 and dropped[2] < 0.6 and dropped[4] < 0.6
    assert doubled[0] > base[0] and doubled[2] < 0.3 * base[2] and doubled[4] < 0.75 * base[4]


def test_too_few_or_unlike_features_are_refused():
    for real, fake in ((normal(5, 3, 0), normal(9, 3, 1)), (normal(9, 3, 0), normal(9, 4, 1))):
        with pytest.raises(ValueError, match="features"):
            Neighbourhoods(real, fake)


def test_inception_score_is_the_exponential_of_the_mutual_information():
    p = torch.softmax(2 * normal(300, 7, 0), 1)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    parts = [part.numpy() for part in p[order].tensor_split(10)]
    each = [math.exp(np.mean([stats.entropy(row, part.mean(0)) for row in part])) for part in parts]
    found = inception_score(p, seed=3)
    assert found.value == pytest.approx(np.mean(each), rel=1e-10)
    assert found.standard_error == pytest.approx(stats.sem(each), rel=1e-10)
    certain = torch.eye(5, dtype=torch.float64).repeat(40, 1)
    assert inception_score(certain, splits=1).value == pytest.approx(5)
    assert inception_score(torch.full((50, 5), 0.2)).value == pytest.approx(1)
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(2 * certain)


def test_calibration_error_of_a_known_law():
    """Confidence c, right with probability a: |a - c|, by hand."""
    p = torch.tensor([[0.9, 0.1]] * 100 + [[0.6, 0.4]] * 100)
    labels = torch.tensor([0] * 70 + [1] * 30 + [0] * 60 + [1] * 40)
    assert calibration_error(p, labels) == pytest.approx((0.2 + 0.0) / 2, abs=1e-6)


def test_the_extrapolated_distance_has_less_bias_and_is_exact_on_a_line(monkeypatch):
    real, fake = normal(20_000, 24, 0), normal(400, 24, 1)  # of one law: the true distance is 0
    plain = frechet_distance(Gaussian.fit(real), Gaussian.fit(fake))
    found = extrapolated_frechet_distance(real, fake)
    assert abs(found.value) < 0.35 * plain and found.standard_error < plain
    monkeypatch.setattr("ldm.evaluation.metrics.frechet.frechet_distance", lambda a, b: 3.0 + 40 / b.count)
    exact = extrapolated_frechet_distance(real, fake)
    assert exact.value == pytest.approx(3.0, abs=1e-9) and exact.standard_error < 1e-9


def test_the_sliced_distance_of_isotropic_gaussians_is_the_frechet_distance():
    a, b = normal(4000, 5, 0), normal(4000, 5, 1, scale=1.5, shift=0.4)
    truth = 5 * (0.4**2 + 0.5**2)
    assert distance_of_slices(slices_of(a), slices_of(b), 5) == pytest.approx(truth, rel=0.1)
    assert distance_of_slices(slices_of(a), slices_of(a), 5) == 0


def test_nearest_training_images_and_diversity_by_hand():
    train = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    assert nearest_distances(torch.tensor([[9.0, 0.0], [0.0, 6.0]]), train).tolist() == pytest.approx([1, 4])
    features = torch.tensor([[0.0], [1.0], [3.0], [50.0], [54.0], [99.0]])
    assert diversity(features, ["a", "a", "a", "b", "b", "c"]) == pytest.approx((1 + 2 + 3 + 4) / 4)
    with pytest.raises(ValueError, match="two samples"):
        diversity(features[:2], ["a", "b"])


def test_half_samples_give_the_standard_error_of_a_mean():
    x = normal(400, 1, 5).squeeze(1)
    low, high = interval(float(x.mean()), [float(x[half].mean()) for half in half_samples(400, 2000)])
    expected = 2 * 1.96 * float(x.std()) / 20
    assert high - low == pytest.approx(expected, rel=0.06) and low < x.mean() < high
    assert half_samples(7, 10) == [] and interval(1.0, []) is None


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of 40 intervals of 95 %, at least 33 hold the mean that they estimate: fewer has a chance below 0.2 %."""
    held = 0
    for seed in range(40):
        x = normal(200, 1, 100 + seed).squeeze(1)
        low, high = interval(float(x.mean()), [float(x[half].mean()) for half in half_samples(200, 200, seed=seed)])
        held += low <= 0 <= high
    assert held >= 33


def test_every_metric_of_samples_by_name():
    metrics = ("recall", "fid", "kid", "sliced_fid", "fid_infinity", "precision", "density", "coverage", "diversity")
    real, fake = normal(80, 8, 0).float(), normal(60, 8, 1, shift=0.2).float()
    groups = [number % 3 for number in range(60)]
    probabilities = torch.softmax(normal(60, 4, 2), 1)
    samples = Samples(real, fake, Toy(), groups, probabilities, "judge:toy")
    config = EvaluationConfig(metrics=(*metrics, "inception_score"), bootstrap=20)
    figures = measure_samples(samples, config)
    assert [figure.metric for figure in figures] == list(config.metrics)
    for figure in figures:
        assert math.isfinite(figure.value) and ("toy" in figure.name)
        assert (figure.interval is None) == (figure.metric in ("kid", "fid_infinity", "inception_score"))
        if figure.interval is not None:
            assert figure.interval[0] <= figure.value <= figure.interval[1]
        if figure.metric in ("precision", "recall", "coverage"):
            assert figure.interval[0] >= 0 and figure.interval[1] <= 1, "a share's interval holds shares"
    assert [figure.name for figure in figures[:3]] == ["recall[toy]", "FD[toy]", "KD[toy]"]
    assert all(figure.interval is None for figure in measure_samples(samples, replace(config, bootstrap=0)))
    again = measure_samples(samples, config)
    assert again == figures
    for metric, bare in (("inception_score", Samples(real, fake, Toy(), groups)), ("diversity", None)):
        bare = bare or Samples(real, fake, Toy(), range(60))
        with pytest.raises(UserError, match=f"`metrics` {metric}"):
            measure_samples(bare, EvaluationConfig(metrics=(metric,)))
