"""BN-VAE: the floor under the KL, and what evaluation does with the running statistics."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from autoencoders import Autoencoder, AutoencoderConfig, LossConfig, autoencoder_loss
from autoencoders.bottlenecks import BatchNormConfig
from autoencoders.bottlenecks.batch_norm import BatchNormGaussian


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def features(batch=16, channels=3, seed=0):
    drawn = torch.randn(batch, 2 * channels, 4, 4, dtype=torch.float64, generator=generator(seed))
    return 0.01 * drawn + 7  # means that hardly differ


def test_the_floor_is_the_kl_of_normal_posteriors_of_unit_variance():
    model, x = BatchNormGaussian(3, 0.6).double().train(), features()
    model.shift.data.copy_(torch.tensor([0.0, 0.3, -1.0]))
    x[:, 3:] = 0.0  # log-variances at which the rest of the KL is zero
    mean, logvar = model.posterior(x)
    by_torch = kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    formula = 16 / 2 * (3 * 0.6**2 + model.shift.square().sum())
    torch.testing.assert_close(by_torch, formula.detach(), rtol=1e-3, atol=0)  # eps beside a variance of 1e-4
    torch.testing.assert_close(model(x, generator()).losses["kl"], by_torch, rtol=1e-12, atol=0)
    lower = model(features(seed=1), generator()).losses["kl"]  # other log-variances: only more
    assert lower > formula * 0.999


def test_the_floor_holds_where_a_plain_vae_collapses():
    """Images of noise with a KL weight that no reconstruction is worth: the plain posterior becomes the prior."""
    final = {}
    for name in ("kl", "bn"):
        config = AutoencoderConfig(bottleneck=name, block_out_channels=(8, 8), norm_num_groups=4, attention=False)
        model = Autoencoder(config).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(60):
            x = torch.rand(16, 3, 8, 8, generator=generator(step)) - 0.5
            output = model(x, generator=generator(step))
            optimizer.zero_grad()
            autoencoder_loss(LossConfig("l2", kl_weight=10.0), x, output).total.backward()
            optimizer.step()
        final[name] = output.losses["kl"].item()
    floor = 4 * 4 * 4 * 0.5**2 / 2  # C h w gamma^2 / 2
    assert final["kl"] < 0.25 * floor
    assert final["bn"] > 0.999 * floor


def test_evaluation_uses_running_statistics_and_a_folder_keeps_them(tmp_path):
    model = BatchNormGaussian(3, 0.5).double().train()
    for seed in range(200):
        model(features(seed=seed), generator())
    alone = model.eval().encode(features(batch=1, seed=1000)).mean
    within = model.encode(torch.cat([features(batch=1, seed=1000), features(seed=5)])).mean[:1]
    torch.testing.assert_close(alone, within, rtol=0, atol=0)
    assert model.encode(features(batch=256, seed=3)).mean.std().item() == pytest.approx(0.5, rel=0.05)
    whole = Autoencoder(AutoencoderConfig(bottleneck="bn", bn=BatchNormConfig(0.7)))
    whole.train()(torch.rand(4, 3, 8, 8, generator=generator()), generator=generator())
    whole.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path)
    assert loaded.config.bn.mean_scale == 0.7
    assert torch.equal(loaded.quantize.running_var, whole.quantize.running_var)
    assert not torch.equal(loaded.quantize.running_var, torch.ones(4))


@pytest.mark.parametrize("scale", [0, -1, float("nan"), True])
def test_a_scale_that_gives_no_floor_is_refused(scale):
    with pytest.raises(ValueError, match="mean_scale: expected a number above 0"):
        BatchNormConfig(scale)
