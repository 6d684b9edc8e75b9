"""The hierarchical VAE: KL of residual posteriors, free bits, every group active, coarse groups for global content."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from autoencoders import Autoencoder, AutoencoderConfig, LossConfig, autoencoder_loss
from autoencoders.bottlenecks import NVAEConfig
from autoencoders.bottlenecks.hierarchy import pack, unpack
from autoencoders.bottlenecks.nvae import residual_kl

KL = 0.01


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def settings(**own):
    own = NVAEConfig(**{"group_levels": 2, "groups_per_level": 2, "group_width": 16, **own})
    return AutoencoderConfig(
        bottleneck="nvae", nvae=own, latent_channels=2, block_out_channels=(16, 16), norm_num_groups=4, attention=False
    )


def pictures(count, seed, size=16):
    """Smooth grey, and stripes of one pixel whose sign is drawn for every 2 x 2 pixels: low and high frequencies."""
    draws = generator(seed)
    corners = 1.6 * torch.rand(count, 1, 2, 2, generator=draws) - 0.8
    smooth = F.interpolate(corners, (size, size), mode="bilinear", align_corners=True)
    signs = 2.0 * torch.randint(2, (count, 1, size // 2, size // 2), generator=draws) - 1
    stripes = 1 - 2 * (torch.arange(size) % 2)
    return (smooth + 0.3 * F.interpolate(signs, scale_factor=2) * stripes).expand(-1, 3, -1, -1)


def test_residual_kl_is_that_of_the_two_normals():
    draws = generator()
    mean, delta, log_ratio, log_sigma = torch.randn(4, 3, 2, 5, 4, generator=draws, dtype=torch.float64)
    p = Normal(mean, log_sigma.exp())
    q = Normal(mean + delta, (log_sigma + log_ratio).exp())
    torch.testing.assert_close(residual_kl(delta, log_ratio, log_sigma), kl_divergence(q, p).sum((1, 2, 3)))
    assert residual_kl(0 * delta, 0 * log_ratio, log_sigma).tolist() == [0.0] * 3


def test_the_reported_kl_is_true_and_free_bits_end_its_pressure():
    x = pictures(8, 0)
    free = {}
    for bits in (0.0, 20.0, 1e5):
        model = Autoencoder(settings(free_bits=bits), seed=2).double()
        output = model(x.double(), generator=generator(1))
        groups = torch.stack([output.metrics[f"kl_{index}"] for index in range(4)])
        torch.testing.assert_close(output.losses["kl"].detach(), groups.sum())
        free[bits] = output.losses.get("free_bits", torch.zeros(()).double())
        expected = groups.clamp(min=bits).sum()  # sum_l max(lambda, KL_l)
        torch.testing.assert_close((output.losses["kl"] + free[bits]).detach(), expected)
        loss = autoencoder_loss(LossConfig(kl_weight=3.0), x.double(), output)
        torch.testing.assert_close(loss.total.detach() - loss.terms["reconstruction"], 3.0 * expected / x[0].numel())
        bits_per_pixel = output.metrics["bits_per_pixel"] * 16 * 16 * torch.tensor(2.0).double().log()
        torch.testing.assert_close(bits_per_pixel, groups.sum())
    gradient = torch.autograd.grad(output.losses["kl"] + free[1e5], list(model.parameters()), allow_unused=True)
    assert not any(each.abs().max() > 1e-12 for each in gradient if each is not None)


@pytest.fixture(scope="module")
def trained():
    model = Autoencoder(settings(free_bits=2.0), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 10)
        x = pictures(16, step)
        loss = autoencoder_loss(LossConfig("l2", kl_weight=KL), x, model(x, generator=generator(step)))
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def test_every_group_is_active(trained):
    metrics = trained(pictures(64, 10**6), generator=generator()).metrics
    assert all(float(metrics[f"kl_{index}"]) > 0.3 for index in range(4)), metrics


@torch.no_grad()
def test_top_groups_change_what_is_global(trained):
    noise = torch.randn(64, trained.latent_channels, 4, 4, generator=generator())
    levels = unpack(noise, trained.quantize.channels)
    other = [torch.randn(level.shape, generator=generator(1 + k)) for k, level in enumerate(levels)]

    def change(level):
        """Mean squares of the mean colour and of all else, when the noise of one level is drawn again."""
        given = pack([other[k] if k == level else each for k, each in enumerate(levels)])
        moved = trained._images(trained.quantize.from_noise(given)) - trained._images(
            trained.quantize.from_noise(noise)
        )
        colour = moved.mean((2, 3), keepdim=True)
        return float(colour.square().mean()), float((moved - colour).square().mean())

    (top_colour, top_rest), (bottom_colour, bottom_rest) = change(0), change(1)
    assert top_colour > 10 * bottom_colour
    assert top_colour / top_rest > 2 * bottom_colour / bottom_rest


@torch.no_grad()
def test_means_are_the_latents_and_go_back(trained):
    x = pictures(4, 7)
    plain = trained(x).reconstruction
    torch.testing.assert_close(trained.decode(trained.encode(x).mean), plain, rtol=0, atol=1e-5)
    assert trained.encode(x).std is None
    x = torch.cat([x, x], 3)  # another size: nothing in it depends on one
    assert trained.decode(trained.encode(x).mean).shape == x.shape
    means = unpack(trained.encode(x).mean, trained.quantize.channels)
    assert [tuple(each.shape) for each in means] == [(4, 4, 4, 8), (4, 4, 8, 16)]


@torch.no_grad()
def test_the_weights_of_draws_are_those_of_the_two_laws():
    """Under q the mean of log q - log p is the KL, and the mean of p / q is 1: the weights of a bound on log p(x)."""
    model = Autoencoder(settings(group_width=8, groups_per_level=1), seed=3).eval()
    for group in model.quantize.groups:
        group.posterior[-1].weight.mul_(8)  # posteriors that differ from the prior
    features = model._features(pictures(1, 0, size=4))
    draws = 6000
    state, ratio = model.quantize.weighted_sample(features.expand(draws, -1, -1, -1), generator(1))
    output = model.quantize(features.expand(draws, -1, -1, -1), generator(1))
    torch.testing.assert_close(state, output.latents)
    kl = float(output.losses["kl"])
    assert kl > 0.2 and float(-ratio.mean()) == pytest.approx(kl, abs=4 * float(ratio.std()) / draws**0.5)
    weights = ratio.exp()
    assert float(weights.mean()) == pytest.approx(1, abs=4 * float(weights.std()) / draws**0.5)
