"""The von Mises-Fisher bottleneck against scipy's Bessel functions and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats

from autoencoders.bottlenecks import VonMisesFisherConfig
from autoencoders.bottlenecks.von_mises_fisher import (
    VonMisesFisher,
    log_bessel,
    mean_resultant_length,
    sample_cosine,
    sample_vmf,
    vmf_kl,
)

GRID = [(dim, kappa) for dim in (2, 3, 4, 16, 128) for kappa in (0.01, 1.0, 30.0, 500.0, 1e4)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def directions(count, dim, seed=0):
    """One direction, `count` times: (1, dim, count, 1)."""
    mu = F.normalize(torch.randn(1, dim, 1, 1, dtype=torch.float64, generator=generator(seed)), dim=1)
    return mu.expand(1, dim, count, 1).contiguous()


@pytest.mark.parametrize(("dim", "kappa"), GRID)
def test_bessel_ratio_and_kl_are_those_of_scipy(dim, kappa):
    upper, lower = special.ive(dim / 2, kappa), special.ive(dim / 2 - 1, kappa)  # exp(-kappa) I_v(kappa)
    assert log_bessel(dim / 2 - 1, kappa) == pytest.approx(math.log(lower) + kappa, rel=1e-10, abs=1e-10)
    assert mean_resultant_length(kappa, dim) == pytest.approx(upper / lower, rel=1e-8)
    entropy = stats.vonmises_fisher(np.eye(dim)[0], kappa).entropy()
    area = math.log(2) + dim / 2 * math.log(math.pi) - special.gammaln(dim / 2)
    assert vmf_kl(kappa, dim) == pytest.approx(area - entropy, rel=1e-6, abs=1e-8)  # the uniform law's entropy is area


@pytest.mark.parametrize(("dim", "kappa"), [(2, 3.0), (3, 0.5), (4, 50.0), (32, 20.0), (4, 5000.0)])
def test_samples_have_norm_one_and_the_mean_resultant_length(dim, kappa):
    count = 40_000
    mu = directions(count, dim)
    z = sample_vmf(mu, kappa, generator(1))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(1, count, 1, dtype=z.dtype))
    along = (z * mu).sum(1).flatten()
    assert abs(along.mean() - mean_resultant_length(kappa, dim)) < 4 * along.std() / count**0.5
    across = z.mean((0, 2, 3)) - along.mean() * mu[0, :, 0, 0]  # the mean points along mu
    assert across.norm() < 4 * (dim / count) ** 0.5


@pytest.mark.parametrize(("dim", "kappa"), [(2, 3.0), (4, 20.0), (9, 1.0)])
def test_the_cosine_has_its_exact_law(dim, kappa):
    w = sample_cosine(torch.empty(4000, dtype=torch.float64), dim, kappa, generator(2)).numpy()
    grid = np.cos(np.linspace(math.pi, 0, 20_001))  # density in the angle: sin^(d-2) exp(kappa cos), without poles
    density = np.sin(np.arccos(grid)) ** (dim - 2) * np.exp(kappa * (grid - 1))
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    cumulative /= cumulative[-1]
    assert stats.kstest(w, lambda x: np.interp(x, grid, cumulative)).pvalue > 1e-3


def test_kl_is_the_mean_of_the_log_ratio_over_samples():
    dim, kappa, count = 4, 8.0, 40_000
    mu = directions(count, dim)
    along = (sample_vmf(mu, kappa, generator(3)) * mu).sum(1).flatten()
    reference = stats.vonmises_fisher(np.eye(dim)[0], kappa).logpdf(np.eye(dim)[0]) - kappa  # the log normaliser
    ratio = kappa * along + reference + math.log(2 * math.pi**2)  # 2 pi^2: the area of S^3
    assert abs(ratio.mean() - vmf_kl(kappa, dim)) < 4 * ratio.std() / count**0.5


def test_the_gradient_is_that_of_the_expectation():
    """E[a . z] = A(kappa) a . mu, and mu = x / |x|: its gradient in x is known."""
    dim, kappa, count = 4, 5.0, 40_000
    x = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([0.3, 1.0, -1.0, 0.2], dtype=torch.float64)
    mu = F.normalize(x, dim=0)[None, :, None, None].expand(1, dim, count, 1)
    z = sample_vmf(mu, kappa, generator(4))
    (estimate,) = torch.autograd.grad((z[0, :, :, 0].T @ a).mean(), x)
    (exact,) = torch.autograd.grad(mean_resultant_length(kappa, dim) * (a @ F.normalize(x, dim=0)), x)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.01)


def test_the_bottleneck_encodes_to_the_sphere_and_decodes_back_to_it():
    model = VonMisesFisher(4, 10.0)
    features = torch.randn(2, 4, 3, 5, generator=generator())
    output = model(features, generator(1))
    assert output.losses["kl"].item() == pytest.approx(15 * vmf_kl(10.0, 4), rel=1e-6)
    assert torch.equal(model(features, generator(1)).latents, output.latents)
    for latents in (output.latents, model.encode(features).mean, model.decode(3 * features)):
        torch.testing.assert_close(latents.norm(dim=1), torch.ones(2, 3, 5))
    assert model(features.bfloat16(), generator()).latents.dtype == torch.float32


@pytest.mark.parametrize("kappa", [0, -1, float("nan"), float("inf"), "much"])
def test_a_kappa_that_is_none_is_refused(kappa):
    with pytest.raises(ValueError, match="kappa: expected a number above 0"):
        VonMisesFisherConfig(kappa)
