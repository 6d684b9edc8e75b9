"""Finite scalar quantisation: the implied codebook."""

from __future__ import annotations

import itertools

import pytest
import torch

from autoencoders import AutoencoderConfig
from autoencoders.bottlenecks import FiniteScalarConfig
from autoencoders.bottlenecks.finite_scalar import FiniteScalar


def features(batch=8, channels=4, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(batch, channels, size, size, dtype=torch.float64, generator=generator)


def test_codes_and_indices_are_one_to_one():
    levels = (8, 5, 4, 3)
    model = FiniteScalar(levels)
    indices = torch.arange(8 * 5 * 4 * 3).view(2, 15, 16)
    codes = model.lookup(indices)
    assert torch.equal(model.indices(codes), indices)
    assert torch.equal(model.decode(codes), codes)
    values = [[(k - n // 2) / (n // 2) for k in range(n)] for n in levels]
    expected = {tuple(reversed(code)) for code in itertools.product(*reversed(values))}
    found = [tuple(row) for row in codes.permute(0, 2, 3, 1).flatten(0, 2).tolist()]
    assert set(found) == {tuple(torch.tensor(code).tolist()) for code in expected}
    first = [(k - 4) / 4 for k in range(8)]
    assert [row[0] for row in found[:8]] == first  # the first channel runs fastest


@pytest.mark.parametrize("level", [3, 4, 5, 8, 16])
def test_every_level_is_reached_and_none_beyond(level):
    model = FiniteScalar((level,)).double()
    ramp = torch.linspace(-20, 20, 4001, dtype=torch.float64).view(1, 1, 1, -1)
    latents = model.encode(ramp).mean
    assert (latents.diff() >= 0).all()
    assert latents.abs().max() <= 1
    assert model.indices(latents).unique().tolist() == list(range(level))
    assert model.encode(torch.zeros(1, 1, 1, 1)).mean.item() == pytest.approx(0.0, abs=1e-6)
    far = torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2)  # as diffusion may give them
    assert model.indices(far).flatten().tolist() == [0, level - 1]


def test_the_gradient_passes_the_rounding():
    model, x = FiniteScalar((8, 5, 5, 5)).double(), features().requires_grad_()
    z = model.encode(x).mean
    output = model(x, None)
    assert torch.equal(output.latents, z + (model.decode(z) - z))
    assert (output.latents - z).abs().max() <= 0.25 + 1e-9  # half a step of five levels
    upstream = features(seed=1)
    through = torch.autograd.grad(output.latents, x, upstream)[0]
    assert torch.equal(through, torch.autograd.grad(z, x, upstream)[0])
    assert not output.losses


def test_use_of_the_codes_is_counted():
    model, x = FiniteScalar((8, 5, 5, 5)), features(batch=16)
    metrics = model(x, None).metrics
    indices, counts = model.indices(model.encode(x).mean).unique(return_counts=True)
    p = counts / counts.sum()
    assert metrics["used_codes"] == len(indices)
    assert metrics["perplexity"].item() == pytest.approx(torch.exp(-(p * p.log()).sum()).item(), rel=1e-4)


@pytest.mark.parametrize("levels", [(), (8, 2), (8, 3.5), (2**12, 2**12), "many", (True, 4)])
def test_levels_are_refused_in_one_line(levels):
    with pytest.raises(ValueError, match="levels: expected whole numbers from 3"):
        FiniteScalarConfig(levels)


def test_there_is_a_level_for_each_channel():
    with pytest.raises(ValueError, match="levels: expected latent_channels = 3 numbers, got 4"):
        AutoencoderConfig(bottleneck="fsq", latent_channels=3)
