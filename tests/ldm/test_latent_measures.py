"""What latents say, against laws whose entropy, variance and divergence are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch.distributions import Normal, kl_divergence

from ldm.data.selection import even_indices, random_indices
from ldm.evaluation.autoencoder.latent_images import slerp
from ldm.evaluation.metrics.latent_measures import PosteriorMoments, code_statistics, prior_discrepancy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_uniform_source_of_codes_takes_log2_k_bits():
    codes = torch.arange(64).repeat(8).view(8, 64)  # every code once in each image
    found = code_statistics(codes, 64)
    assert found.entropy == pytest.approx(6, rel=1e-12) and found.perplexity == pytest.approx(64, rel=1e-12)
    assert found.used == 64 and found.perplexity_error == pytest.approx(0, abs=1e-9)
    assert float(found.surprise.mean()) == pytest.approx(6 * 64), "bits an image"
    half = code_statistics(codes // 2, 128)  # 32 of 128
    assert half.entropy == pytest.approx(5, rel=1e-12) and half.used == 32


def test_entropy_of_a_known_law_within_its_standard_error():
    p = np.array([0.5, 0.25, 0.1, 0.1, 0.05])
    draws = [torch.multinomial(torch.tensor(p), 6000, True, generator=generator(k)).view(200, 30) for k in range(40)]
    found = [code_statistics(codes, 5) for codes in draws]
    z = [(each.perplexity - 2 ** entropy(p, base=2)) / each.perplexity_error for each in found]
    assert abs(np.mean(z)) < 0.6 and 0.7 < np.std(z) < 1.4, "the error is the scatter over fresh sets"
    together = torch.cat(
        [draws[0][:, :1].expand(-1, 30)]
    )  # the codes of an image all alike: as few as there are images
    assert code_statistics(together, 5).perplexity_error > 3 * found[0].perplexity_error


def test_active_units_of_a_constructed_encoder():
    """Seven numbers of the latents follow the image, two hardly, the rest is noise around the prior's mean."""
    moments = PosteriorMoments()
    x = torch.randn(500, 7, generator=generator())
    mean = torch.cat([1 + x, 1e3 + 0.05 * x[:, :2], torch.zeros(500, 3)], 1).view(500, 3, 2, 2)
    for part in mean.split(150):
        moments.add(part, torch.ones_like(part))
    assert moments.active_units() == 7
    expected = mean.double().flatten(1).var(0)
    torch.testing.assert_close(moments.variance_of_means(), expected, rtol=1e-6, atol=1e-9)


def test_divergence_is_that_of_the_gaussian_with_the_same_moments():
    moments = PosteriorMoments()
    mean = torch.tensor([1.0, -0.5]) + torch.tensor([0.6, 2.0]) * torch.randn(4000, 2, generator=generator())
    std = torch.tensor([0.8, 0.3]).expand(4000, 2)
    moments.add(mean.view(4000, 2, 1, 1), std.reshape(4000, 2, 1, 1))
    draws = (mean + std * torch.randn(4000, 2, generator=generator(1))).double()
    torch.testing.assert_close(
        moments.divergence(), kl_divergence(Normal(draws.mean(0), draws.std(0)), Normal(0.0, 1.0)), rtol=0.05, atol=0.01
    )
    law = Normal(torch.tensor([1.0, -0.5]), torch.tensor([1.0, math.hypot(2.0, 0.3)]))
    torch.testing.assert_close(moments.divergence().float(), kl_divergence(law, Normal(0.0, 1.0)), rtol=0.1, atol=0.0)
    prior = PosteriorMoments()
    prior.add(torch.zeros(10, 3, 1, 1), torch.ones(10, 3, 1, 1))
    assert float(prior.divergence().abs().max()) < 1e-12


def by_loops(x, y):
    """Gretton et al. 2012, equation 4, pair by pair."""
    n, d = x.shape

    def k(a, b):
        return sum(2 * d * s / (2 * d * s + ((a - b) ** 2).sum()) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return sum(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs) / len(pairs)


def test_discrepancy_is_the_sum_over_all_pairs():
    x, y = (torch.randn(9, 5, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))
    assert prior_discrepancy(x + 0.4, y)[0] == pytest.approx(by_loops((x + 0.4).numpy(), y.numpy()), rel=1e-10)
    with pytest.raises(ValueError, match="as many draws"):
        prior_discrepancy(x, y[:5])


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_discrepancy_is_unbiased_and_its_error_is_the_scatter(shift):
    found = []
    for seed in range(300):
        x, y = torch.randn(2, 40, 3, generator=generator(seed), dtype=torch.float64)
        found.append(prior_discrepancy(x + shift, y))
    values, errors = np.array(found).T
    assert values.std() == pytest.approx(np.sqrt((errors**2).mean()), rel=0.15)
    if not shift:
        assert abs(values.mean()) < 3 * values.std() / math.sqrt(300) and (values < 0).any()
    else:
        assert values.mean() > 20 * values.std() / math.sqrt(300)


def test_slerp_stays_on_the_sphere_and_meets_both_ends():
    a, b = torch.randn(2, 50, generator=generator(), dtype=torch.float64)
    a, b = a / a.norm(), b / b.norm()
    line = slerp(a, b, torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(line.norm(dim=1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(torch.stack([line[0], line[4]]), torch.stack([a, b]))
    steps = (line[1:] * line[:-1]).sum(1).arccos()
    torch.testing.assert_close(steps, steps[:1].expand(4))
    torch.testing.assert_close(slerp(a, 2 * a, torch.tensor([0.5], dtype=torch.float64))[0], 1.5 * a)


def test_which_images_are_looked_at():
    assert (
        random_indices(5, 9, 0) == [0, 1, 2, 3, 4]
        and even_indices(11, 3) == [0, 5, 10]
        and even_indices(2, 9) == [0, 1]
    )
    assert random_indices(1000, 50, 0) == random_indices(1000, 50, 0) != random_indices(1000, 50, 1)
    assert len(set(random_indices(1000, 50, 0))) == 50 and max(random_indices(1000, 50, 0)) > 800
