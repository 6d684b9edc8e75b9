"""The KL bottleneck against closed forms and Monte Carlo."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from autoencoders.bottlenecks.gaussian import Gaussian, gaussian_kl


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_kl_is_that_of_torch_distributions_and_zero_at_the_prior():
    mean, logvar = random(5, 3, 2, 2), 3 * random(5, 3, 2, 2, seed=1)
    expected = kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(gaussian_kl(mean, logvar), expected, rtol=1e-12, atol=0)
    assert torch.equal(gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2))


def test_kl_is_the_mean_of_the_log_ratio_over_samples():
    mean, logvar = random(1, 4), 0.5 * random(1, 4, seed=1)
    posterior = Normal(mean, torch.exp(0.5 * logvar))
    z = mean + posterior.scale * random(200_000, 4, seed=2)
    ratio = (posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)
    error = ratio.std() / len(z) ** 0.5
    assert abs(ratio.mean() - gaussian_kl(mean, logvar)[0]) < 4 * error


def test_sample_is_reparameterised():
    features = random(2, 6, 4, 4).requires_grad_()
    bottleneck = Gaussian()
    z = bottleneck(features, torch.Generator().manual_seed(7)).latents
    eps = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(7))
    mean, logvar = features.chunk(2, 1)
    sigma = torch.exp(0.5 * logvar)
    torch.testing.assert_close(z, mean + sigma * eps)
    (gradient,) = torch.autograd.grad(z.sum(), features)  # dz/dmu = 1, dz/dlogvar = sigma eps / 2
    torch.testing.assert_close(gradient, torch.cat([torch.ones_like(mean), 0.5 * sigma * eps], 1))
    torch.testing.assert_close(bottleneck(features, None).latents, mean)


@pytest.mark.parametrize(("value", "clamped"), [(-100.0, -30.0), (50.0, 20.0)])
def test_log_variance_is_clamped(value, clamped):
    features = torch.cat([torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), value)], 1)
    assert Gaussian().encode(features).std.item() == pytest.approx(torch.tensor(clamped / 2).exp().item(), rel=1e-6)
    assert torch.isfinite(Gaussian()(features, None).losses["kl"])


def test_half_precision_features_give_float32_latents():
    output = Gaussian()(random(1, 4, 2, 2).bfloat16(), torch.Generator())
    assert output.latents.dtype == output.losses["kl"].dtype == torch.float32
