"""The importance-weighted bound against models whose log p(x) is known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn
from torch.distributions import Laplace, Normal

from autoencoders import Autoencoder, AutoencoderConfig, LossConfig
from autoencoders.bottlenecks import VonMisesFisherConfig
from autoencoders.bottlenecks.von_mises_fisher import VonMisesFisher
from autoencoders.importance import (
    LogitLaplaceLikelihood,
    PixelLikelihood,
    has_density,
    implied_likelihood,
    importance_bound,
    log_weights,
    standard_posterior,
)

NOISE = 0.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_gaussian(widen=1.0, shift=0.0):
    """x = W z + b + NOISE * eps at each of 2 x 2 places, and the exact posterior, or one that is off; W, b.

    The columns of W are orthogonal, so that the posterior's covariance is diagonal.
    """
    config = AutoencoderConfig(latent_channels=2, block_out_channels=(8,), use_quant_conv=False)
    model = Autoencoder(config)
    w = torch.tensor([[0.6, 0.4], [0.3, -0.8], [0.6, 0.0]], dtype=torch.float64)  # 0.6 0.4 - 0.3 0.8 = 0
    b = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)
    precision = 1 + w.square().sum(0) / NOISE**2  # (2,), of the posterior
    to_mean = (w / NOISE**2 / precision).T  # (2, 3)
    model.encoder, model.decoder = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 3, 1)
    model.double().eval()
    with torch.no_grad():
        model.decoder.weight.copy_(w[:, :, None, None])
        model.decoder.bias.copy_(b)
        model.encoder.weight.zero_()
        model.encoder.weight[:2] = to_mean[:, :, None, None]
        model.encoder.bias.copy_(torch.cat([shift - to_mean @ b, 2 * math.log(widen) - precision.log()]))
    return model, w.numpy(), b.numpy()


def exact(image, w, b):
    """log p(x): the places are independent, each normal with mean b and covariance W W^T + NOISE^2."""
    places = image.permute(1, 2, 0).reshape(-1, 3).numpy()
    return multivariate_normal(b, w @ w.T + NOISE**2 * np.eye(3)).logpdf(places).sum()


IMAGE = torch.rand(3, 2, 2, generator=generator(), dtype=torch.float64) * 2 - 1
LIKELIHOOD = PixelLikelihood("gaussian", NOISE)


def test_with_the_exact_posterior_every_weight_is_log_p():
    model, w, b = linear_gaussian()
    weights = log_weights(model, IMAGE, LIKELIHOOD, 64, generator(), chunk=10)
    torch.testing.assert_close(weights, torch.full((64,), exact(IMAGE, w, b), dtype=torch.float64), rtol=1e-12, atol=0)
    for samples in (1, 8, 64):
        assert float(importance_bound(weights, samples)) == pytest.approx(exact(IMAGE, w, b), rel=1e-12)


def test_with_another_posterior_the_bound_rises_with_k_to_log_p():
    model, w, b = linear_gaussian(widen=1.4, shift=0.3)
    weights = log_weights(model, IMAGE, LIKELIHOOD, 32_000, generator(), chunk=4000)
    bounds = [float(importance_bound(weights, k)) for k in (1, 2, 8, 64, 32_000)]
    gaps = [exact(IMAGE, w, b) - bound for bound in bounds]
    assert gaps[0] > 0.5, "the evidence bound is loose here"
    assert all(later < 0.8 * sooner for sooner, later in pairwise(gaps))
    assert abs(gaps[-1]) < 0.03


def test_a_calibration_in_the_weights_does_not_change_the_density(tmp_path):
    """A saved KL model has its calibration in its weights: the prior of what it encodes to is no more N(0, 1)."""
    model = Autoencoder(AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=4)).eval()
    model.calibrate(torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([0.2, 3.0, 1.0, 0.7]))
    model.save_pretrained(tmp_path)
    loaded, image = Autoencoder.from_pretrained(tmp_path), torch.rand(3, 8, 8, generator=generator()) - 0.5
    assert not torch.equal(loaded.prior_std, torch.ones(4))
    before, after = (log_weights(each, image, LIKELIHOOD, 16, generator(1)) for each in (model, loaded))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-3)
    with torch.no_grad():
        for one, other in zip(
            standard_posterior(model, image[None]), standard_posterior(loaded, image[None]), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_sphere_has_a_density_too():
    """Under its own posterior the mean of log q - log p is the KL, and the mean of p / q over draws is 1."""
    bottleneck = VonMisesFisher(4, 3.0)
    z, ratio = bottleneck.weighted_sample(torch.randn(20_000, 4, 1, 1, generator=generator()), generator(1))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(20_000, 1, 1))
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert float(-ratio.mean()) == pytest.approx(bottleneck.kl, abs=4 * error)
    assert float(ratio.exp().mean()) == pytest.approx(1, abs=4 * float(ratio.exp().std()) / math.sqrt(len(ratio)))
    config = AutoencoderConfig(bottleneck="vmf", block_out_channels=(8, 8), vmf=VonMisesFisherConfig(5.0))
    weights = log_weights(Autoencoder(config).eval(), torch.zeros(3, 8, 8), LIKELIHOOD, 4, generator())
    assert weights.shape == (4,) and weights.isfinite().all()


@pytest.mark.parametrize(("kind", "law"), [("laplace", Laplace), ("gaussian", Normal)])
def test_the_likelihood_is_that_of_torch_distributions(kind, law):
    images, outputs = (torch.randn(3, 3, 4, 4, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))
    expected = law(outputs, 0.3).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(PixelLikelihood(kind, 0.3).log_prob(images, outputs), expected)


def test_the_logit_laplace_density_is_one_of_images():
    """It integrates to 1 over the numbers that its range maps onto, -1.25 to 1.25."""
    x = torch.linspace(-1.25, 1.25, 200_003, dtype=torch.float64)[1:-1]
    outputs = torch.tensor([0.4, -0.7], dtype=torch.float64).view(1, 2, 1, 1).expand(len(x), -1, -1, -1)
    density = LogitLaplaceLikelihood().log_prob(x.view(-1, 1, 1, 1), outputs).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-4)
    config = AutoencoderConfig(block_out_channels=(8, 8), decoder_output="logit_laplace")
    loss = LossConfig("logit_laplace", kl_weight=1.0)
    weights = log_weights(Autoencoder(config).eval(), torch.zeros(3, 8, 8), implied_likelihood(loss), 4, generator())
    assert weights.shape == (4,) and weights.isfinite().all()
    with pytest.raises(ValueError, match="decoder gives a scale"):
        implied_likelihood(loss, 0.1)
    with pytest.raises(ValueError, match="huber: has no likelihood"):
        implied_likelihood(LossConfig("huber"))


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_the_loss_is_the_evidence_bound_of_the_likelihood_it_implies(reconstruction):
    """R + kl_weight K of two outputs differ by kl_weight times what the log-likelihoods differ by."""
    loss = LossConfig(reconstruction, kl_weight=0.02)
    image, *outputs = (torch.rand(1, 3, 4, 4, generator=generator(seed), dtype=torch.float64) for seed in range(3))
    power = 1 if reconstruction == "l1" else 2
    errors = [float((image - output).abs().pow(power).sum()) for output in outputs]
    logs = [float(implied_likelihood(loss).log_prob(image, output)) for output in outputs]
    assert errors[0] - errors[1] == pytest.approx(0.02 * (logs[1] - logs[0]), rel=1e-9)
    assert implied_likelihood(loss, 0.7).scale == 0.7


def test_what_has_no_density_is_refused():
    vq = Autoencoder(AutoencoderConfig(bottleneck="vq", block_out_channels=(8, 8)))
    assert not has_density(vq)
    with pytest.raises(ValueError, match="bottleneck vq has no density"):
        log_weights(vq, torch.zeros(3, 8, 8), LIKELIHOOD, 1, generator())
    with pytest.raises(ValueError, match="KL weight of 0"):
        implied_likelihood(LossConfig("l2", kl_weight=0))
    with pytest.raises(ValueError, match="above 0"):
        PixelLikelihood("laplace", 0.0)
    with pytest.raises(ValueError, match="divisor"):
        importance_bound(torch.zeros(10), 3)
