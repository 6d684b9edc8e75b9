"""Denoising: what is masked, and that a model learns to fill it in."""

from __future__ import annotations

import pytest
import torch

from autoencoders import (
    Autoencoder,
    AutoencoderConfig,
    CorruptionConfig,
    LossConfig,
    autoencoder_loss,
    corrupt,
    patch_mask,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slopes(batch, seed, size=16):
    """Images that are planes of a random slope a channel: what is masked can be told from the rest."""
    across = torch.linspace(-1, 1, size)
    a, b, c = (torch.rand(3, batch, 3, 1, 1, generator=generator(seed)) - 0.5) * torch.tensor([0.8, 0.8, 0.4]).view(
        3, 1, 1, 1, 1
    )
    return a * across + b * across[:, None] + c


def test_masks_are_whole_patches_at_the_asked_rate():
    images = torch.ones(64, 3, 18, 16)
    config = CorruptionConfig(mask_probability=0.3, mask_patch=4)
    mask = patch_mask(images, config, generator())
    assert mask.shape == (64, 1, 18, 16)
    cells = mask[:, 0, :16].unflatten(1, (4, 4)).unflatten(3, (4, 4))  # (B, 4, 4, 4, 4): grid and patch in turn
    assert torch.equal(cells, cells[:, :, :1, :, :1].expand_as(cells))
    assert torch.equal(mask[:, :, 16], mask[:, :, 17])  # the cut patches of the last rows
    assert mask.float().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / (64 * 20)) ** 0.5)
    assert torch.equal(corrupt(images, config, generator()) == 0, mask.expand_as(images))


def test_noise_has_the_asked_spread_and_nothing_is_drawn_without_corruption():
    images, draws = slopes(32, 0), generator(3)
    state = draws.get_state()
    assert corrupt(images, CorruptionConfig(), draws) is images
    assert torch.equal(state, draws.get_state())
    noise = corrupt(images, CorruptionConfig(noise_std=0.2), draws) - images
    assert noise.std().item() == pytest.approx(0.2, rel=0.02)


def test_a_denoising_autoencoder_fills_in_better_than_the_mean():
    config = CorruptionConfig(mask_probability=0.3, mask_patch=2, noise_std=0.05)
    model = Autoencoder(AutoencoderConfig(bottleneck="none", block_out_channels=(16, 16), latent_channels=8))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    for step in range(180):
        clean = slopes(32, step, size=8)
        output = model(corrupt(clean, config, generator(step)), generator=generator())
        optimizer.zero_grad()
        autoencoder_loss(LossConfig("l2"), clean, output).total.backward()
        optimizer.step()
    held_out = slopes(64, 10_000, size=8)
    mask = patch_mask(held_out, config, generator(7)).expand_as(held_out)
    with torch.no_grad():
        filled = model.eval()(held_out.masked_fill(mask, 0.0)).reconstruction
    mean_fill = held_out.mean((2, 3), keepdim=True).expand_as(held_out)  # the best constant of each image
    error, baseline = ((fill - held_out)[mask].square().mean().item() for fill in (filled, mean_fill))
    assert error < 0.6 * baseline


@pytest.mark.parametrize(
    "settings", [{"mask_probability": 1.1}, {"mask_probability": "x"}, {"mask_patch": 0}, {"noise_std": float("nan")}]
)
def test_settings_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: expected"):
        CorruptionConfig(**settings)
