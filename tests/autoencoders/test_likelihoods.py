"""Huber, logit-Laplace, KL warm-up and feature distances, against scipy and torch's own laws."""

import numpy as np
import pytest
import torch
from scipy import integrate, special
from torch.distributions import Laplace, SigmoidTransform, TransformedDistribution

from autoencoders import Autoencoder, AutoencoderConfig, LossConfig, autoencoder_loss
from autoencoders.diffusers_config import class_of
from autoencoders.losses import feature_distance
from autoencoders.losses.logit_laplace import bounded, from_unit, log_density, median, negative_log_likelihood, to_unit

CONFIG = AutoencoderConfig(
    bottleneck="vq", num_codes=8, block_out_channels=(8, 16), norm_num_groups=4, decoder_output="logit_laplace"
)


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("location", "log_scale"), [(0.0, 0.0), (1.3, -1.0), (-2.0, 0.7)])
def test_the_density_integrates_to_one(location, log_scale):
    def density(x):
        numbers = (torch.tensor(value, dtype=torch.float64) for value in (x, location, log_scale))
        return float(log_density(*numbers).exp())

    peak = special.expit(location)
    total = integrate.quad(density, 0, peak)[0] + integrate.quad(density, peak, 1)[0]
    assert total == pytest.approx(1, abs=1e-6)


def test_the_likelihood_is_that_of_a_squashed_laplace_law():
    x, parameters = images(2, 3, 4, 4).double(), images(2, 6, 4, 4).double()
    location, log_scale = bounded(parameters)
    law = TransformedDistribution(Laplace(location, log_scale.exp()), SigmoidTransform())
    expected = -law.log_prob(0.8 * (x + 1) / 2 + 0.1).mean()  # phi of the paper, for pixels from -1 to 1
    assert float(negative_log_likelihood(x, parameters)) == pytest.approx(float(expected), rel=1e-10)
    assert torch.allclose(from_unit(to_unit(x)), x)
    best = torch.cat([torch.logit(to_unit(x)), log_scale], dim=1)  # its location is the median
    assert torch.allclose(median(best), x, atol=1e-9)


def test_huber():
    output = Autoencoder(AutoencoderConfig(bottleneck="none", block_out_channels=(8,), norm_num_groups=4))
    z = output(images(1, 3, 8, 8), generator=torch.Generator())
    found = autoencoder_loss(LossConfig("huber", huber_delta=0.3), images(1, 3, 8, 8), z).total
    error = z.reconstruction.detach().numpy() - images(1, 3, 8, 8).numpy()
    assert float(found.detach()) == pytest.approx(special.huber(0.3, error).mean(), rel=1e-5)


def test_a_logit_laplace_decoder_learns_shows_images_and_survives_saving(tmp_path):
    model, x = Autoencoder(CONFIG), images(4, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        output = model.train()(x, generator=generator)
        loss = autoencoder_loss(LossConfig("logit_laplace"), x, output).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2
    assert float(model.decoder.conv_out.weight.grad[3:].abs().sum()) > 0  # the scales learn too
    model.eval()
    with torch.no_grad():
        z = model.encode(x).mean
        decoded, by_codes = model.decode(z), model.decode_codes(model.codes(x))
    assert decoded.shape == x.shape and decoded.abs().max() <= 1
    assert torch.allclose(by_codes, decoded, atol=1e-5)
    model.calibrate(torch.full((4,), 0.3), torch.full((4,), 2.0))
    model.save_pretrained(tmp_path)
    again = Autoencoder.from_pretrained(tmp_path)
    assert again.config.decoder_output == "logit_laplace"
    with torch.no_grad():
        assert again.decode(z).equal(model.decode(z))
    assert class_of(again.config) == ("autoencoders", "LogitLaplaceVQModel")
    with pytest.raises(ValueError, match="decoder_output"):
        plain = Autoencoder(AutoencoderConfig(block_out_channels=(8,), norm_num_groups=4))
        autoencoder_loss(LossConfig("logit_laplace"), x, plain(x, generator=generator))


@pytest.mark.parametrize("bottleneck", ["kl", "gumbel", "fsq"])
def test_every_bottleneck_has_both_outputs(bottleneck, tmp_path):
    levels = {"latent_channels": 4} if bottleneck == "fsq" else {}
    config = AutoencoderConfig(
        bottleneck=bottleneck, block_out_channels=(8, 8), norm_num_groups=4, decoder_output="logit_laplace", **levels
    )
    Autoencoder(config).save_pretrained(tmp_path)
    assert Autoencoder.from_pretrained(tmp_path).config.decoder_output == "logit_laplace"


def test_the_weight_of_the_kl_rises():
    config = LossConfig("l2", kl_weight=0.5, kl_warmup_steps=10)
    assert [config.kl_weight_at(step) for step in (0, 1, 5, 10, 99, None)] == pytest.approx(
        [0, 0.05, 0.25, 0.5, 0.5, 0.5]
    )
    model, x = Autoencoder(AutoencoderConfig(block_out_channels=(8,), norm_num_groups=4)), images(2, 3, 8, 8)
    output = model(x, generator=torch.Generator().manual_seed(0))
    whole, part, none = (float(autoencoder_loss(config, x, output, step).total.detach()) for step in (10, 4, 0))
    kl = float(output.losses["kl"].detach()) / x[0].numel()
    assert whole - none == pytest.approx(0.5 * kl, rel=1e-4) and part - none == pytest.approx(0.2 * kl, rel=1e-4)


def test_feature_distance():
    a, b = images(2, 3, 4, 4), images(2, 3, 4, 4).flip(0)
    lengths = [np.linalg.norm(t.numpy(), axis=1, keepdims=True) for t in (a, b)]
    expected = ((a.numpy() / lengths[0] - b.numpy() / lengths[1]) ** 2).sum(1).mean((1, 2))
    found = feature_distance(lambda t: [t, 3 * t], a, b)  # the length of a map does not count
    assert np.allclose(found, 2 * expected, atol=1e-5)
    dead = torch.zeros(1, 3, 4, 4, requires_grad=True)
    feature_distance(lambda t: [t], dead, a[:1]).sum().backward()
    assert dead.grad.isfinite().all()
