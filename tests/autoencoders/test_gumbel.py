"""The Gumbel-softmax bottleneck: its law, its limits, its KL, its temperature."""

from __future__ import annotations

import math

import pytest
import torch

from autoencoders import Autoencoder, AutoencoderConfig
from autoencoders.bottlenecks import GumbelConfig
from autoencoders.bottlenecks.gumbel import Gumbel, gumbel_softmax, uniform_kl


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def test_kl_is_log_k_minus_the_entropy():
    logits = 2 * random(3, 16, 4, 5)
    entropy = torch.distributions.Categorical(logits=logits.permute(0, 2, 3, 1)).entropy()  # (B, h, w)
    torch.testing.assert_close(uniform_kl(logits), (math.log(16) - entropy).sum((1, 2)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(uniform_kl(torch.zeros(1, 16, 2, 2)), torch.zeros(1), rtol=0, atol=1e-5)
    certain = torch.zeros(1, 16, 1, 1)
    certain[:, 3] = 1000.0
    assert uniform_kl(certain).item() == pytest.approx(math.log(16))


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_the_largest_weight_follows_the_softmax_of_the_logits(temperature):
    logits, count = random(1, 5, 1, 1), 40_000
    weights = gumbel_softmax(logits.expand(1, 5, count, 1), temperature, generator(1))
    torch.testing.assert_close(weights.sum(1), torch.ones(1, count, 1, dtype=torch.float64))
    found = torch.bincount(weights.argmax(1).flatten(), minlength=5) / count
    p = logits.softmax(1).flatten()
    assert ((found - p).abs() < 4 * (p * (1 - p) / count).sqrt()).all()


def test_as_the_temperature_falls_the_weights_tend_to_one_hot_and_as_it_grows_to_uniform():
    logits = random(2, 8, 16, 16)
    largest = [gumbel_softmax(logits, tau, generator(2)).amax(1).mean().item() for tau in (100.0, 1.0, 0.1, 1e-5)]
    assert largest == sorted(largest)
    assert largest[0] == pytest.approx(1 / 8, rel=0.1)
    assert largest[-1] > 0.999


def test_new_logits_fall_with_the_distance_to_the_codes():
    model, z = Gumbel(64, 4, GumbelConfig().temperature_at).double(), 2 * random(2, 4, 16, 16)
    distance = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), model.embedding.weight)  # (N, K)
    assert torch.equal(model.indices(z).flatten(), distance.argmin(1))
    assert len(model.indices(model.embedding.weight[:, :, None, None]).unique()) == 64  # no code is out of reach


def quantizer(**settings):
    model = Gumbel(16, 4, GumbelConfig(**settings).temperature_at, settings.get("straight_through", False)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=generator(3))
    return model


def test_straight_through_gives_one_code_with_the_gradient_of_the_mixture():
    soft, hard, z = quantizer(), quantizer(straight_through=True), random(2, 4, 3, 3).requires_grad_()
    output = hard(z, generator(4))
    mixture = soft(z, generator(4))
    weights = gumbel_softmax(hard.logits(z), 1.0, generator(4))
    torch.testing.assert_close(output.latents, hard.lookup(weights.argmax(1)))
    torch.testing.assert_close(mixture.latents, torch.einsum("bkhw,kc->bchw", weights, soft.embedding.weight))
    upstream = random(2, 4, 3, 3, seed=5)
    of_hard, of_soft = (torch.autograd.grad(out.latents, z, upstream)[0] for out in (output, mixture))
    torch.testing.assert_close(of_hard, of_soft)
    assert torch.equal(hard(z, None).latents, hard.decode(z))


def test_the_temperature_is_a_half_cosine_of_the_step():
    config = GumbelConfig(temperature=2.0, temperature_end=0.5, temperature_steps=100)
    assert config.temperature_at(0) == 2.0
    assert config.temperature_at(50) == pytest.approx(1.25)
    assert config.temperature_at(100) == config.temperature_at(10**6) == pytest.approx(0.5)
    assert GumbelConfig(temperature_steps=0).temperature_at(0) == 0.0625
    model = Autoencoder(AutoencoderConfig(bottleneck="gumbel", num_codes=16, gumbel=config))
    x = torch.zeros(1, 3, 8, 8)
    for step, temperature in ((0, 2.0), (50, 1.25), (0, 2.0)):
        model.set_step(step)
        assert model(x, generator=generator()).metrics["temperature"].item() == pytest.approx(temperature)


def test_extreme_logits_and_half_precision_stay_finite():
    z = (1e4 * random(1, 4, 3, 3)).requires_grad_()
    output = quantizer(temperature=1e-3)(z, generator())
    (output.latents.sum() + output.losses["kl"]).backward()
    assert output.latents.isfinite().all()
    assert z.grad.isfinite().all()
    half = quantizer().bfloat16()(random(1, 4, 2, 2).bfloat16(), generator())
    assert half.losses["kl"].dtype == torch.float32


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"temperature": -1.0}, {"temperature_end": 0}, {"temperature": float("nan")},
     {"temperature_steps": -1}, {"straight_through": 1}],
)  # fmt: skip
def test_settings_are_refused_in_one_line(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected"):
        GumbelConfig(**settings)
