"""Our folders in diffusers and diffusers' folders in ours: same names, same numbers to 1e-5."""

from __future__ import annotations

import json
import logging

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoders import Autoencoder, AutoencoderConfig, measure_latents

WEIGHTS = "diffusion_pytorch_model.safetensors"
DOWN, UP, ATTENTION_DOWN, ATTENTION_UP = (
    "DownEncoderBlock2D",
    "UpDecoderBlock2D",
    "AttnDownEncoderBlock2D",
    "AttnUpDecoderBlock2D",
)


def assert_same(got, expected, tolerance=1e-5):
    """Equal to the tolerance, relative to the largest number where that is above 1."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


def images(size=32, batch=2):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def shape(widths, layers=2, groups=8, attention_at=(), **extra):
    levels = range(len(widths))
    return {
        "block_out_channels": widths,
        "down_block_types": tuple(ATTENTION_DOWN if i in attention_at else DOWN for i in levels),
        "up_block_types": tuple(ATTENTION_UP if i in attention_at else UP for i in reversed(levels)),
        "layers_per_block": layers,
        "norm_num_groups": groups,
        **extra,
    }


FOREIGN_KL = {
    "stable diffusion 1.5, narrow": shape((16, 32, 64, 64), groups=16, sample_size=32),
    "kl-f4, 3 channels": shape((16, 32, 64), latent_channels=3, scaling_factor=1.0),
    "kl-f16 with attention at the lowest level": shape((8, 8, 16, 16, 32), latent_channels=16, attention_at=(4,)),
    "flux: shift, no quant_conv": shape(
        (8, 16), use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.36, shift_factor=0.1
    ),
    "statistics a channel, no attention": shape(
        (8,), mid_block_add_attention=False, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 4.0]
    ),
}
FOREIGN_VQ = {
    "vq-f4": shape((16, 32, 64), latent_channels=3, num_vq_embeddings=64),
    "vq-f8 with attention at the lowest level": shape((8, 16, 16, 32), latent_channels=4, attention_at=(3,)),
    "codes narrower than the latents": shape((8, 16), latent_channels=6, vq_embed_dim=2, scaling_factor=0.7),
}


@torch.no_grad()
@pytest.mark.parametrize("name", FOREIGN_KL)
def test_diffusers_kl_loads_in_ours(name, tmp_path):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(**FOREIGN_KL[name]).eval()
    theirs.save_pretrained(tmp_path)
    ours = Autoencoder.from_pretrained(tmp_path)
    facts, x = theirs.config, images()
    mean = torch.tensor(facts.latents_mean or [facts.shift_factor or 0.0])[:, None, None]
    std = torch.tensor(facts.latents_std or [1.0])[:, None, None] / facts.scaling_factor
    expected, got = theirs.encode(x).latent_dist, ours.encode(x)
    assert ours.factor == 2 ** (len(facts.block_out_channels) - 1)
    assert_same(got.mean, (expected.mean - mean) / std)
    assert_same(got.std, expected.std / std)
    z = torch.randn(got.mean.shape, generator=torch.Generator().manual_seed(2))
    assert_same(ours.decode(z), theirs.decode(z * std + mean).sample)
    ours, theirs, x, z = ours.double(), theirs.double(), x.double(), z.double()
    mean, std = (t[:, None, None] for t in (ours.latents_mean, ours.latents_std))
    assert_same(ours.encode(x).mean * std + mean, theirs.encode(x).latent_dist.mean, 1e-12)
    assert_same(ours.decode(z), theirs.decode(z * std + mean).sample, 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", FOREIGN_VQ)
def test_diffusers_vq_loads_in_ours(name, tmp_path):
    torch.manual_seed(0)
    theirs = diffusers.VQModel(**FOREIGN_VQ[name]).eval()
    theirs.quantize.embedding.weight.data.normal_()
    theirs.save_pretrained(tmp_path)
    ours = Autoencoder.from_pretrained(tmp_path)
    x = images()
    raw = theirs.encode(x).latents
    got = ours.encode(x)
    assert got.std is None
    assert_same(got.mean, raw * theirs.config.scaling_factor)
    assert_same(ours.decode(got.mean), theirs.decode(raw).sample)


CONFIGS = {
    "factor 1": AutoencoderConfig(block_out_channels=(8,), norm_num_groups=4),
    "factor 2, no attention": AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, attention=False),
    "factor 4": AutoencoderConfig(block_out_channels=(8, 16, 16), norm_num_groups=4, layers_per_block=2),
    "factor 8, attention at two levels": AutoencoderConfig(
        block_out_channels=(8, 8, 16, 16), norm_num_groups=8, attention_levels=(2, 3), sample_size=32
    ),
    "no quant_conv": AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, use_quant_conv=False),
    "vq": AutoencoderConfig(bottleneck="vq", block_out_channels=(8, 16), latent_channels=3, attention_levels=(0,)),
    "vq, narrow codes": AutoencoderConfig(bottleneck="vq", block_out_channels=(8, 16), code_channels=2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_ours_loads_in_diffusers(name, tmp_path, caplog):
    config, x = CONFIGS[name], images()
    ours = Autoencoder(config, seed=3).eval()
    for parameter in ours.parameters():  # new blocks start as their shortcuts; trained ones do not stay so
        if parameter.ndim == 4 and not parameter.any():
            torch.nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=torch.Generator().manual_seed(1))
    if config.bottleneck == "vq":
        ours.quantize.embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
    ours.calibrate(*measure_latents(ours, [x]))
    ours.save_pretrained(tmp_path)
    theirs_class = diffusers.VQModel if config.bottleneck == "vq" else diffusers.AutoencoderKL
    diffusers_logger = logging.getLogger("diffusers")
    diffusers_logger.addHandler(caplog.handler)
    try:
        theirs, report = theirs_class.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        diffusers_logger.removeHandler(caplog.handler)
    assert not any(report.values()), report
    assert not caplog.records, caplog.text
    latents = ours.encode(x)
    mean, std = ours.latents_mean[:, None, None], ours.latents_std[:, None, None]
    if config.bottleneck == "vq":
        raw = theirs.encode(x).latents
        assert_same((raw - mean) / std, latents.mean)
        assert_same(theirs.decode(raw).sample, ours.decode(latents.mean))
        return
    if config.use_quant_conv:  # the calibration is in quant_conv: stock pipelines need nothing more
        assert theirs.config.scaling_factor == 1.0
        assert theirs.config.latents_mean is None
        mean, std = torch.zeros(()), torch.ones(())
    else:
        torch.testing.assert_close(torch.tensor(theirs.config.latents_mean), mean.flatten())
        torch.testing.assert_close(torch.tensor(theirs.config.latents_std), std.flatten())
    posterior = theirs.encode(x).latent_dist
    assert_same((posterior.mean - mean) / std, latents.mean)
    assert_same(posterior.std / std, latents.std)
    decoded = theirs.decode(latents.mean * std + mean).sample
    assert_same(decoded, ours.decode(latents.mean))


def test_first_stable_diffusion_names_and_defaults(tmp_path):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(**FOREIGN_KL["stable diffusion 1.5, narrow"])
    theirs.save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / WEIGHTS)
    for new_name, old_name in old.items():
        tensors = {key.replace(f".{new_name}.", f".{old_name}."): value for key, value in tensors.items()}
    save_file(tensors, tmp_path / WEIGHTS)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["scaling_factor"], config["mid_block_add_attention"], config["force_upcast"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = Autoencoder.from_pretrained(tmp_path)
    assert torch.equal(
        ours.encoder.mid_block.attentions[0].to_out[0].weight, theirs.encoder.mid_block.attentions[0].to_out[0].weight
    )
    torch.testing.assert_close(ours.latents_std, torch.full((4,), 1 / 0.18215))
