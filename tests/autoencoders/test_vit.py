"""The transformer coder: its parts against torch's own, every bottleneck between them, folders, memory."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from autoencoders import (
    Autoencoder,
    AutoencoderConfig,
    LossConfig,
    Tiling,
    autoencoder_loss,
    bottlenecks,
    class_of,
    measure_latents,
)
from autoencoders.coders.vit import Block, positions
from autoencoders.settings import ViTConfig

OWN = ViTConfig(vit_width=24, vit_layers=2, vit_heads=3, vit_mlp_ratio=2)
SMALL = AutoencoderConfig(coder="vit", patch_size=4, vit=OWN, num_codes=16)
SMALL = replace(SMALL, vqvae2=replace(SMALL.vqvae2, code_width=8), nvae=replace(SMALL.nvae, group_width=8))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch=4, height=16, width=16, seed=0):
    return torch.rand(batch, 3, height, width, generator=generator(seed)) * 2 - 1


def test_a_block_is_torchs_pre_norm_layer():
    block = Block(OWN).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator())
    theirs = nn.TransformerEncoderLayer(24, 3, 48, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).double()
    names = {"to_qkv": "self_attn.in_proj_", "to_out": "self_attn.out_proj."}
    names |= {name.replace("_", ""): name.replace("_", "") + "." for name in ("norm1", "norm2")}
    names |= {"linear_1": "linear1.", "linear_2": "linear2."}
    own = {names[key.split(".")[0]] + key.split(".")[1]: value for key, value in block.state_dict().items()}
    theirs.load_state_dict(own)
    x = torch.randn(2, 7, 24, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(block(x), theirs(x))


def test_the_product_of_two_positions_is_a_function_of_their_distance():
    found = positions(5, 7, 16).double().view(5, 7, 16)
    for (r, c), (s, d) in [((0, 0), (4, 6)), ((2, 3), (1, 5)), ((4, 0), (0, 6)), ((3, 3), (3, 3))]:
        rates = [10_000 ** (-i / 4) for i in range(4)]
        expected = sum(math.cos((r - s) * rate) + math.cos((c - d) * rate) for rate in rates)
        assert float(found[r, c] @ found[s, d]) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(positions(5, 7, 16).view(5, 7, 16)[:3, :2], positions(3, 2, 16).view(3, 2, 16))


@pytest.mark.parametrize("name", [name for name in bottlenecks(plugins=False) if name not in ("identity", "linear")])
def test_every_bottleneck_between_transformers(name, tmp_path):
    model, x = Autoencoder(replace(SMALL, bottleneck=name), seed=1), images()
    for parameter in model.parameters():
        if parameter.ndim == 4 and not parameter.any():
            nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=generator(1))
    output = model(x, generator=generator())
    assert output.reconstruction.shape == x.shape
    autoencoder_loss(LossConfig(kl_weight=0.1), x, output).total.backward()
    idle = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle
    model.eval().calibrate(*measure_latents(model, [x]))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert class_of(model.config) == ("autoencoders", "Autoencoder") == ("autoencoders", config["_class_name"])
    loaded = Autoencoder.from_pretrained(tmp_path)
    assert loaded.fingerprint() == model.fingerprint()  # of the entries and the weights
    other = images(2, 16, 24)  # a size that it was not trained on
    latents = loaded.encode(other).mean
    assert latents.shape == (2, model.latent_channels, 16 // model.factor, 24 // model.factor)
    torch.testing.assert_close(latents, model.encode(other).mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded.decode(latents), model.decode(latents), rtol=0, atol=1e-5)


def test_it_learns():
    model = Autoencoder(replace(SMALL, bottleneck="none", latent_channels=16), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    course = []
    for step in range(50):
        x = nn.functional.interpolate(images(16, 4, 4, seed=step), scale_factor=4, mode="bilinear")
        loss = (model(x, generator=generator(step)).reconstruction - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item() / float(x.var()))
    assert course[-1] < 0.4


@pytest.mark.parametrize("coder", ["conv", "vit"])
def test_recomputed_activations_give_the_same_gradients(coder):
    model, x = Autoencoder(replace(SMALL, coder=coder, norm_num_groups=8), seed=1).double(), images(2).double()
    blocks = [*model.encoder.modules(), *model.decoder.modules()]
    watched = next(each for each in blocks if isinstance(each, nn.Linear | nn.Conv2d) and each.in_channels == 32) if (
        coder == "conv"
    ) else model.encoder.blocks[0].to_qkv  # fmt: skip
    calls = []
    watched.register_forward_hook(lambda *_: calls.append(1))
    found = {}
    for recompute in (False, True):
        model.gradient_checkpointing = recompute
        assert model.gradient_checkpointing == recompute
        calls.clear()
        loss = model(x, generator=generator()).reconstruction.square().mean()
        found[recompute] = torch.autograd.grad(loss, list(model.parameters())), len(calls)
    assert found[True][1] == 2 * found[False][1]
    torch.testing.assert_close(found[True][0], found[False][0])


def test_tiles_are_refused_and_slices_are_not():
    model, x = Autoencoder(SMALL).eval(), images()
    torch.testing.assert_close(model.encode(x, tiling=Tiling(slicing=True)).mean, model.encode(x).mean)
    for call in (model.encode, model.decode):
        given = x if call == model.encode else model.encode(x).mean
        with pytest.raises(ValueError, match="every patch of a vit coder attends to all others"):
            call(given, tiling=Tiling(tile=8, tile_overlap=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vit_heads": 5}, "vit_heads: expected a divisor of vit_width 192, got 5"),
        ({"vit_width": 30, "vit_heads": 1}, "multiple of 4"),
        ({"vit_width": 10**9}, "vit_width: expected a whole number from 4 to"),
        ({"vit_layers": 0}, "vit_layers: expected a whole number from 1"),
        ({"vit_mlp_ratio": 0}, "vit_mlp_ratio: expected a number above 0"),
    ],
)
def test_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**settings)


def test_a_coder_needs_something_to_code():
    for name in ("identity", "linear"):
        with pytest.raises(ValueError, match=f'coder "vit": bottleneck {name}'):
            AutoencoderConfig(coder="vit", bottleneck=name)
    with pytest.raises(ValueError, match="divisible by 4"):
        Autoencoder(SMALL).encode(images(1, 18, 16))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"coder": "os.system"}, "coder: expected conv or vit"),
        ({"coder": ["vit"]}, "coder: expected conv or vit"),
        ({"vit": {"vit_width": 16384, "vit_heads": 1}}, r"expected shape .*16384.*, found"),
        ({"vit": {"vit_width": 10**12}}, "vit_width: expected a whole number"),
        ({"vit": {"depth": 3}}, "vit: expected an object with vit_heads"),
        ({"vit": None}, "vit: expected an object"),
        ({"patch_size": None}, "patch_size: expected a whole number"),
        ({"patch_size": 10**6}, "patch_size: expected a whole number"),
        ({"coder": "conv"}, "patch_size: belongs to coder 'vit'"),
        ({"bottleneck": "linear"}, "bottleneck: expected one of kl, none"),
        ({"bottleneck": "nvae", "settings": {"group_levels": 9}}, "group_levels: expected a whole number from 1 to 5"),
        ({"bottleneck": "vqvae2", "settings": {"code_levels": 1}}, "code_levels: expected a whole number from 2 to 5"),
        ({"bottleneck": "vqvae2", "settings": {"num_codes": 10**12}}, "num_codes"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(entries, message, tmp_path):
    Autoencoder(SMALL).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    with pytest.raises(ValueError, match=message) as refusal:
        Autoencoder.from_pretrained(tmp_path)
    assert str(file.parent) in str(refusal.value) and "\n" not in str(refusal.value)
