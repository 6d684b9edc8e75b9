"""The codes of images and the pictures of codes; pictures from a bottleneck's own prior."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from scipy import stats

from autoencoders import Autoencoder, AutoencoderConfig, bottlenecks, measure_latents

SMALL = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, num_codes=32, revive_after=0)
SMALL = replace(SMALL, fsq=replace(SMALL.fsq, levels=(5, 4, 3, 3)))
LEARNED = [name for name in bottlenecks(plugins=False) if name not in ("identity", "linear")]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def model_of(name):
    model = Autoencoder(replace(SMALL, bottleneck=name), seed=3).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:  # latents far apart, so that many codes are met
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("name", LEARNED)
def test_codes_and_back(name):
    model, x = model_of(name), torch.rand(3, 3, 16, 24, generator=generators(0)[0]) * 2 - 1
    sizes = model.config.codebook_sizes
    if not sizes:
        with pytest.raises(ValueError, match=f"bottleneck {name} has no codes"):
            model.codes(x)
        return
    with torch.no_grad():
        codes = model.codes(x)
        again = model.decode_codes(codes)
        plain = model.decode(model.encode(x).mean)
    torch.testing.assert_close(again, plain)
    assert len(codes) == len(sizes)
    for each, size in zip(codes, sizes, strict=True):
        assert each.shape[0] == 3 and each.dtype == torch.int64 and int(each.min()) >= 0 and int(each.max()) < size
    assert len(codes[-1].unique()) > 1
    other = [each.clone() for each in codes]
    other[0][1, 0, 0] = (other[0][1, 0, 0] + 1) % sizes[0]
    with torch.no_grad():
        changed = (model.decode_codes(other) - again).abs().amax((1, 2, 3)) > 0
    assert changed.tolist() == [False, True, False]
    for wrong in ([], [codes[0].float(), *codes[1:]], [codes[0] + sizes[0], *codes[1:]], [codes[0][0], *codes[1:]]):
        with pytest.raises(ValueError, match="codes"):
            model.decode_codes(wrong)


@pytest.mark.parametrize("name", LEARNED)
def test_pictures_from_the_prior(name, tmp_path):
    model = model_of(name)
    if not model.has_prior:
        with pytest.raises(ValueError, match=f"bottleneck {name} has no prior of its own"):
            model.sample_prior(16, 16, generators(0))
        return
    pictures = model.sample_prior(16, 24, generators(0, 1, 2))
    assert pictures.shape == (3, 3, 16, 24)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3
    torch.testing.assert_close(model.sample_prior(16, 24, generators(2)), pictures[2:])
    # a calibration is of the latents' units, and the prior goes with them
    batches = [torch.rand(8, 3, 16, 16, generator=generators(7)[0]) * 2 - 1]
    model.calibrate(*measure_latents(model, batches))
    model.save_pretrained(tmp_path / "once")
    once = Autoencoder.from_pretrained(tmp_path / "once")
    once.save_pretrained(tmp_path / "twice")
    twice = Autoencoder.from_pretrained(tmp_path / "twice")
    torch.testing.assert_close(once.sample_prior(16, 24, generators(0, 1, 2)), pictures, rtol=1e-3, atol=1e-4)
    assert torch.equal(once.sample_prior(16, 24, generators(5)), twice.sample_prior(16, 24, generators(5)))
    assert model.fingerprint() == once.fingerprint() == twice.fingerprint()
    with pytest.raises(ValueError, match=f"divisible by {model.factor}"):
        model.sample_prior(15, 16, generators(0))


def test_the_priors_laws():
    def drawn(name):
        return model_of(name).quantize.sample_prior((4, 8, 8), generators(*range(40))).permute(0, 2, 3, 1).flatten(0, 2)

    assert stats.kstest(drawn("kl").flatten().double().numpy(), "norm").pvalue > 1e-3
    # on the sphere of R^4 a coordinate t has (1 + t) / 2 from Beta(3/2, 3/2)
    vmf = drawn("vmf").double()
    torch.testing.assert_close(vmf.norm(dim=1), torch.ones(len(vmf), dtype=torch.float64))
    for channel in vmf.T:
        assert stats.kstest((1 + channel.numpy()) / 2, stats.beta(1.5, 1.5).cdf).pvalue > 1e-3
    gumbel = model_of("gumbel").quantize
    index = torch.cdist(drawn("gumbel"), gumbel.embedding.weight).argmin(1)
    assert stats.chisquare(torch.bincount(index, minlength=32).numpy()).pvalue > 1e-3


def test_a_prior_that_is_not_one_is_refused(tmp_path):
    model = model_of("kl")
    model.calibrate(torch.ones(4), torch.full((4,), 2.0))
    model.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    assert entries["_prior_mean"] == [-0.5] * 4 and entries["_prior_std"] == [0.5] * 4
    for wrong in ({"_prior_std": [0.0] * 4}, {"_prior_mean": [1.0]}, {"_prior_mean": "x"}):
        (tmp_path / "config.json").write_text(json.dumps({**entries, **wrong}))
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Autoencoder.from_pretrained(tmp_path)
