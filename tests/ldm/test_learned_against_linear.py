"""A learned autoencoder against principal components with as many numbers."""

import math

import torch

from autoencoders import Autoencoder, AutoencoderConfig, LossConfig, autoencoder_loss, fit_linear
from ldm.training.config import TrainingConfig
from ldm.training.optimizers import make_optimizer


def generator(seed):
    return torch.Generator().manual_seed(seed)


def spots(count, seed, size=4):
    """A spot that goes round: images on a curve that bends through many dimensions."""
    angle = torch.rand(count, 1, 1, 1, generator=generator(seed)) * 2 * math.pi
    across = torch.linspace(-1, 1, size)
    x, y = 0.7 * angle.cos(), 0.7 * angle.sin()
    spot = torch.exp(-((across - x) ** 2 + (across[:, None] - y) ** 2) / 0.15)
    return (spot - 0.5).expand(-1, 3, -1, -1).contiguous()


def test_an_autoencoder_beats_principal_components_of_the_same_size_on_held_out_images():
    train, held_out = spots(1024, 1), spots(256, 2)

    @torch.no_grad()
    def error(model):
        return float((model.eval().decode(model.encode(held_out).mean) - held_out).square().mean())

    linear = Autoencoder(AutoencoderConfig(bottleneck="linear", latent_channels=2, patch_size=4))
    fit_linear(linear, train.split(256))
    widths = {"block_out_channels": (16, 32, 32), "norm_num_groups": 1, "attention": False}
    learned = Autoencoder(AutoencoderConfig(bottleneck="none", latent_channels=2, **widths)).train()
    config = TrainingConfig(optimizer="muon", learning_rate=2e-3, muon_learning_rate=0.05, adam_beta2=0.99)
    optimizer, steps = make_optimizer(learned, config), 100
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * group["ratio"] * (1 - step / steps)
        images = train[torch.randint(len(train), (32,), generator=generator(step))]
        optimizer.zero_grad()
        autoencoder_loss(LossConfig("l2"), images, learned(images, generator=generator(step))).total.backward()
        optimizer.step()
    assert learned.factor == linear.factor and learned.latent_channels == linear.latent_channels
    assert error(learned) < 0.6 * error(linear)
