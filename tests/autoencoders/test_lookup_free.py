"""Lookup-free quantisation: bits, and the entropy penalty against a softmax over all codes."""

from __future__ import annotations

import math

import pytest
import torch

from autoencoders import AutoencoderConfig
from autoencoders.bottlenecks import LookupFreeConfig
from autoencoders.bottlenecks.lookup_free import LookupFree, entropy_penalty


def vectors(count=50, channels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, dtype=torch.float64, generator=generator)


def model(channels=5, **settings):
    return LookupFree(channels, **{"entropy_weight": 0.1, "entropy_temperature": 1.0, "beta": 0.25, **settings})


def by_softmax(z, temperature):
    """Both entropies from the probabilities of all codes."""
    channels = z.shape[1]
    codes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=z.dtype)] * channels)  # (2^C, C)
    q = torch.softmax(-torch.cdist(z, codes).square() / temperature, 1)
    entropy = torch.distributions.Categorical(probs=q).entropy()
    return entropy.mean(), torch.distributions.Categorical(probs=q.mean(0)).entropy()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 10.0])
def test_entropies_are_those_of_a_softmax_over_all_codes(temperature):
    z = vectors()
    for found, expected in zip(entropy_penalty(z, temperature), by_softmax(z, temperature), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_of_more_bits_than_a_group_the_batch_entropy_is_a_bound():
    z = vectors(channels=10)
    of_each, of_mean = entropy_penalty(z, 1.0)
    exact_each, exact_mean = by_softmax(z, 1.0)
    torch.testing.assert_close(of_each, exact_each, rtol=1e-9, atol=0)
    assert exact_mean <= of_mean <= 10 * math.log(2)


def test_the_penalty_wants_sure_choices_and_many_codes():
    sure_and_many = 20 * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
    of_each, of_mean = entropy_penalty(sure_and_many, 1.0)
    assert of_each.item() == pytest.approx(0.0, abs=1e-6)
    assert of_mean.item() == pytest.approx(4 * math.log(2), rel=1e-5)
    of_each, of_mean = entropy_penalty(torch.zeros(16, 4), 1.0)  # undecided: both are 4 bits, nothing is gained
    assert of_each.item() == of_mean.item() == pytest.approx(4 * math.log(2), rel=1e-5)


def test_codes_and_indices_are_one_to_one():
    quantizer = model(6)
    indices = torch.arange(64).view(1, 8, 8)
    codes = quantizer.lookup(indices)
    assert torch.equal(quantizer.indices(codes), indices)
    assert torch.equal(quantizer.decode(codes), codes)
    assert codes[0, :, 0, 1].tolist() == [1, -1, -1, -1, -1, -1]  # index 1: the first channel is the lowest bit


def test_losses_metrics_and_the_straight_through_gradient():
    z = vectors(32).view(2, 4, 4, 5).permute(0, 3, 1, 2).contiguous().requires_grad_()
    output = model(entropy_weight=0.3)(z, None)
    signs = torch.where(z > 0, 1.0, -1.0).double()
    torch.testing.assert_close(output.latents, signs)
    torch.testing.assert_close(output.losses["commitment"], 0.25 * (z - signs).square().mean())
    of_each, of_mean = by_softmax(z.permute(0, 2, 3, 1).flatten(0, 2), 1.0)
    torch.testing.assert_close(output.losses["entropy"], 0.3 * (of_each - of_mean))
    assert torch.equal(torch.autograd.grad(output.latents.sum(), z)[0], torch.ones_like(z))
    assert output.metrics["used_codes"] == len(signs.permute(0, 2, 3, 1).flatten(0, 2).unique(dim=0))


@pytest.mark.parametrize(
    "settings", [{"entropy_weight": -1}, {"entropy_temperature": 0}, {"entropy_temperature": float("nan")}]
)
def test_settings_are_refused_in_one_line(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected a number"):
        LookupFreeConfig(**settings)


def test_a_codebook_that_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="latent_channels: expected at most 22 bits"):
        AutoencoderConfig(bottleneck="lfq", latent_channels=23)
