"""Both likelihoods on Gaussian data, whose density is known."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from samplers import (
    DiscreteSchedule,
    EDMSchedule,
    Prediction,
    SampleNoise,
    bits_per_dim,
    flow_log_likelihood,
    make_levels,
    variational_bound,
)

MEAN, STD, D = 0.3, 0.5, 4
SCHEDULE = DiscreteSchedule("cosine")


def denoise(x, level):
    x0 = MEAN + STD**2 * level.alpha * (x - level.alpha * MEAN) / ((level.alpha * STD) ** 2 + level.sigma**2)
    return Prediction(x, level, x0)


@pytest.fixture
def data():
    return MEAN + STD * torch.randn(600, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def log_density(x, extra=0.0):
    var = STD**2 + extra
    return (-0.5 * (x - MEAN) ** 2 / var - 0.5 * math.log(2 * math.pi * var)).sum(1)


def test_bound_is_above_the_entropy_and_closes_with_more_steps(data):
    entropy = -log_density(data).mean().item()
    gaps = []
    for n in (20, 100, 500):
        levels = make_levels(SCHEDULE, n, "log_snr", final="first")
        bound = variational_bound(denoise, data, levels, noise=SampleNoise(1, range(len(data))))
        assert bound.total.shape == (len(data),) and (bound.prior >= 0).all() and (bound.diffusion >= 0).all()
        gaps.append(bound.total.mean().item() - entropy)
    assert gaps[0] > gaps[1] > gaps[2] and gaps[1] > 0
    assert gaps[2] < 0.7 and gaps[1] / gaps[2] > 3  # nats in 4 dimensions, the noise of the estimate included


def test_bound_with_all_steps_of_ddpm_is_ddpms(data):
    """The diffusion term is a sum of KLs of two Gaussians with the posterior's variance (Ho et al. 2020, eq. 8)."""
    levels = make_levels(SCHEDULE, 5, "trailing", final="first")
    bound = variational_bound(denoise, data[:3], levels, noise=SampleNoise(1, range(3)))
    noise, kl = SampleNoise(1, range(3)), 0.0
    for now, next in itertools.pairwise(levels):
        p = denoise(now.alpha * data[:3] + now.sigma * noise(data[:3], now, next), now)
        keep = (now.alpha / next.alpha * next.sigma / now.sigma) ** 2
        var = next.sigma**2 * (1 - keep)
        kl = kl + ((next.alpha * (1 - keep) * (data[:3] - p.x0)) ** 2 / (2 * var)).sum(1)
    assert torch.allclose(bound.diffusion, kl, rtol=1e-9)


def test_bound_of_a_learned_variance_is_a_sum_of_divergences(data):
    """Against torch's KL of two normals; with the fraction 0 it is the bound of the small variance."""
    levels = make_levels(SCHEDULE, 5, "trailing", final="first")

    def learned(x, level, fraction=0.3):
        return replace(denoise(x, level), variance_fraction=torch.full_like(x, fraction))

    bound = variational_bound(learned, data[:3], levels, noise=SampleNoise(1, range(3)))
    noise, kl = SampleNoise(1, range(3)), 0.0
    for now, next in itertools.pairwise(levels):
        x = now.alpha * data[:3] + now.sigma * noise(data[:3], now, next)
        keep = (now.alpha / next.alpha * next.sigma / now.sigma) ** 2
        small, large = next.sigma**2 * (1 - keep), now.sigma**2 * (1 - keep)
        means = [next.alpha * (1 - keep) * x0 for x0 in (data[:3], denoise(x, now).x0)]
        true, model = (Normal(m, v**0.5) for m, v in zip(means, (small, small**0.7 * large**0.3), strict=True))
        kl = kl + kl_divergence(true, model).sum(1)
    torch.testing.assert_close(bound.diffusion, kl, rtol=1e-9, atol=0)
    small = variational_bound(lambda x, v: learned(x, v, 0.0), data[:3], levels, noise=SampleNoise(1, range(3)))
    plain = variational_bound(denoise, data[:3], levels, noise=SampleNoise(1, range(3)))
    torch.testing.assert_close(small.total, plain.total, rtol=1e-9, atol=0)


def test_discretised_decoder_is_a_distribution_over_its_bins():
    schedule, values = DiscreteSchedule(), torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    levels = make_levels(schedule, 2, "log_snr", final="first")
    fixed = torch.full((256, 1), 0.2113, dtype=torch.float64)

    def blind(x, level):  # the same estimate for every x0
        return Prediction(x, level, fixed)

    nats = variational_bound(blind, values, levels, noise=SampleNoise(0, range(256)), bins=256).reconstruction
    assert nats.neg().exp().sum() == pytest.approx(1, abs=1e-8)
    assert nats.argmin() == ((values - 0.2113).abs()).argmin()


@pytest.mark.parametrize("schedule", [SCHEDULE, EDMSchedule(sigma_max=1000.0)])
def test_flow_likelihood_is_the_density(data, schedule):
    """With random signs Hutchinson's estimate is exact where the Jacobian is diagonal, as it is here."""
    levels = make_levels(schedule, 300, "log_snr", final="first")[::-1]
    log_p = flow_log_likelihood(denoise, data, levels)
    smallest = levels[0].noise_ratio ** 2
    assert (log_p - log_density(data, smallest)).abs().max() < 0.02
    assert not log_p.requires_grad
    with torch.no_grad():
        assert torch.equal(flow_log_likelihood(denoise, data, levels), log_p)


def test_flow_likelihood_averages_over_probes(data):
    """A Jacobian that is not diagonal: one probe is wrong, all 2^D sign vectors together are exact."""
    lincomb = torch.eye(D, dtype=torch.float64) + 0.3 * torch.ones(D, D, dtype=torch.float64)
    cov = STD**2 * lincomb @ lincomb.T

    def correlated(x, level):
        gain = (
            level.alpha * cov @ torch.linalg.inv(level.alpha**2 * cov + level.sigma**2 * torch.eye(D, dtype=cov.dtype))
        )
        return Prediction(x, level, MEAN + (x - level.alpha * MEAN) @ gain.T)

    levels = make_levels(SCHEDULE, 300, "log_snr", final="first")[::-1]
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * D)
    x = data[:20]
    log_p = flow_log_likelihood(correlated, x, levels, probes=[s.expand_as(x) for s in signs])
    exact = torch.distributions.MultivariateNormal(torch.full((D,), MEAN, dtype=torch.float64), cov).log_prob(x)
    assert (log_p - exact).abs().max() < 0.02
    assert (flow_log_likelihood(correlated, x, levels) - exact).abs().max() > 0.02


def test_bits():
    nats = torch.tensor([4 * math.log(2)])
    assert bits_per_dim(nats, 4).item() == pytest.approx(1)
    assert bits_per_dim(torch.tensor([4 * math.log(2.0)]), 4, bins=256).item() == pytest.approx(8)  # uniform on [-1, 1]


def test_refusals(data):
    with pytest.raises(ValueError, match="end above sigma = 0"):
        variational_bound(denoise, data, make_levels(SCHEDULE, 5), noise=SampleNoise(0, [0]))
    with pytest.raises(ValueError, match="bins must be at least 2"):
        levels = make_levels(SCHEDULE, 5, "log_snr", final="first")
        variational_bound(denoise, data, levels, noise=SampleNoise(0, [0]), bins=1)
    with pytest.raises(ValueError, match="noise must rise"):
        flow_log_likelihood(denoise, data, make_levels(SCHEDULE, 5))
    with pytest.raises(ValueError, match="alpha > 0 and sigma > 0"):
        flow_log_likelihood(denoise, data, make_levels(SCHEDULE, 5)[::-1])
