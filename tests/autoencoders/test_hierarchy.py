"""Levels of latents packed into one tensor, and VQ-VAE-2 on them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from scipy import stats

from autoencoders import Autoencoder, AutoencoderConfig, LossConfig, autoencoder_loss
from autoencoders.bottlenecks import VQVAE2Config
from autoencoders.bottlenecks.hierarchy import pack, unpack
from autoencoders.bottlenecks.registry import packed_channels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(count, size=16, seed=0):
    """Smooth grey, and stripes of one pixel whose sign is drawn for every 2 x 2 pixels: low and high frequencies."""
    draws = generator(seed)
    corners = 1.6 * torch.rand(count, 1, 2, 2, generator=draws) - 0.8
    smooth = F.interpolate(corners, (size, size), mode="bilinear", align_corners=True)
    signs = 2.0 * torch.randint(2, (count, 1, size // 2, size // 2), generator=draws) - 1
    stripes = 1 - 2 * (torch.arange(size) % 2)
    return (smooth + 0.5 * F.interpolate(signs, scale_factor=2) * stripes).expand(-1, 3, -1, -1)


def settings(levels=2, dropout=0.0, **changes):
    own = {
        "vqvae2": VQVAE2Config(levels, code_width=16, code_dropout=dropout),
        "block_out_channels": (16, 16),
        "norm_num_groups": 4,
    }
    return AutoencoderConfig(bottleneck="vqvae2", num_codes=32, attention=False, **{**own, **changes})


def test_packing_is_space_to_depth_and_back():
    x = [torch.rand(2, 3, 4, 6, generator=generator()), torch.rand(2, 5, 8, 12), torch.rand(2, 1, 16, 24)]
    packed = pack(x)
    assert packed.shape == (2, packed_channels([3, 5, 1]), 4, 6) == (2, 3 + 4 * 5 + 16, 4, 6)
    assert all(torch.equal(a, b) for a, b in zip(unpack(packed, [3, 5, 1]), x, strict=True))
    assert torch.equal(packed[:, 3:23], rearrange(x[1], "b c (h i) (w j) -> b (c i j) h w", i=2, j=2))
    assert torch.equal(packed[:, 23:], rearrange(x[2], "b c (h i) (w j) -> b (c i j) h w", i=4, j=4))
    with pytest.raises(ValueError, match=r"level 1: expected \(8, 12\), got \(8, 11\)"):
        pack([x[0], x[1][..., :11]])
    with pytest.raises(ValueError, match=r"expected \(B, 39, h, w\)"):
        unpack(packed[:, 1:], [3, 5, 1])


@pytest.mark.parametrize("levels", [2, 3])
def test_sizes_codes_and_rate_of_levels(levels):
    model = Autoencoder(settings(levels)).eval()
    assert model.factor == 2**levels
    x = textured(4, 32)
    side = 32 // model.factor
    latents = model.encode(x).mean
    assert latents.shape == (4, 4 * sum(4**level for level in range(levels)), side, side)
    codes = model.codes(x)
    assert [tuple(each.shape) for each in codes] == [(4, side << level, side << level) for level in range(levels)]
    assert model.config.codebook_sizes == (32,) * levels
    metrics = model(x).metrics
    bits = 0.0
    for level, each in enumerate(codes):  # each place of a level costs the entropy of that level's codes
        entropy = stats.entropy(torch.bincount(each.flatten(), minlength=32).numpy())
        assert math.exp(entropy) == pytest.approx(float(metrics[f"perplexity_{level}"]), rel=1e-4)
        assert int(metrics[f"used_codes_{level}"]) == len(each.unique())
        bits += entropy / math.log(2) * each[0].numel()
    assert float(metrics["bits_per_pixel"]) == pytest.approx(bits / 32**2, rel=1e-4)
    with pytest.raises(ValueError, match="twice as fine"):
        model.decode_codes([codes[0], *[each[:, :-1] for each in codes[1:]]])


def test_a_finer_level_is_quantised_given_the_coarser():
    model, x = Autoencoder(settings(3), seed=1).eval(), textured(16)
    model.initialise_codebook([x], generator())
    before = unpack(model.encode(x).mean, [4] * 3)
    for changed in range(3):
        part = model.quantize.quantizers()[changed].embedding.weight
        kept = part.detach().clone()
        part.data.mul_(-3)
        after = unpack(model.encode(x).mean, [4] * 3)
        part.data.copy_(kept)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert same == [level <= changed for level in range(3)]


@torch.no_grad()
def test_codes_on_data_are_vectors_of_their_level():
    model, x = Autoencoder(settings(2)).eval(), textured(8)
    model.initialise_codebook([x[:4], x[4:]], generator())
    for level, found in enumerate(unpack(model.encode(x).mean, [4, 4])):
        codes = model.quantize.quantizers()[level].embedding.weight.double()
        distance = torch.cdist(codes, found.double().permute(0, 2, 3, 1).flatten(0, 2)).amin(1)
        assert float(distance.max()) < 1e-5
    with pytest.raises(ValueError, match="num_codes 32: larger than the sample"):
        Autoencoder(settings(2)).initialise_codebook([x[:1]], generator())


@pytest.fixture(scope="module")
def trained():
    model = Autoencoder(settings(2, 0.3, codebook_decay=0.9, revive_after=10), seed=0)
    model.initialise_codebook([textured(8, seed=9999)], generator())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for step in range(140):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 10)
        x = textured(16, seed=step)
        loss = autoencoder_loss(LossConfig("l2"), x, model(x, generator=generator(step)))
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def spectrum(images):
    """Power by radial frequency, in cycles a pixel: low (below 1/8, the mean among it) and high (above 1/4)."""
    power = torch.fft.fft2(images.double()).abs().square().mean((0, 1))
    one = torch.fft.fftfreq(images.shape[-1], dtype=torch.float64)
    radius = torch.hypot(one[:, None], one[None])
    return float(power[radius < 1 / 8].sum()), float(power[radius > 1 / 4].sum())


@torch.no_grad()
def test_both_code_maps_are_used_and_the_bottom_holds_the_high_frequencies(trained):
    x = textured(64, seed=10**6)
    codes = trained.codes(x)
    whole = trained.decode_codes(codes)
    assert float((whole - x).square().mean()) < 0.2 * float(x.var())
    metrics = trained(x).metrics
    assert float(metrics["perplexity_0"]) > 10 and float(metrics["perplexity_1"]) > 10

    def without(level):
        parts = [q.lookup(code) for q, code in zip(trained.quantize.quantizers(), codes, strict=True)]
        parts[level] = torch.zeros_like(parts[level])
        return trained._images(trained.quantize.join(parts))

    (low, high), (low_lost, high_lost), (_, high_lost_above) = (
        spectrum(each) for each in (whole, whole - without(1), whole - without(0))
    )
    assert high_lost / high > 1.5 * low_lost / low
    assert high_lost > 4 * high_lost_above


def test_dropped_levels_are_the_finer_ones():
    module = Autoencoder(settings(3, 0.5)).quantize
    masks = torch.stack(module._level_masks(torch.zeros(4000, 1, 1, 1), generator())).flatten(1)  # (3, B)
    assert torch.equal(masks, masks.sort(0, descending=True).values)
    torch.testing.assert_close(masks.mean(1), torch.tensor([1.0, 0.75, 0.5]), rtol=0, atol=0.04)
    model, x = Autoencoder(settings(2, 1.0, codebook="gradient", revive_after=0), seed=1), textured(4)
    alone = model.train()(x, generator=generator()).reconstruction
    model.quantize.quantizers()[1].embedding.weight.data.add_(1.0)
    torch.testing.assert_close(model(x, generator=generator()).reconstruction, alone)
    assert not torch.allclose(model.eval()(x).reconstruction, alone)
