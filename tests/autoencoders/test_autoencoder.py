"""The autoencoder as a whole: every bottleneck, calibration, folders, refusals."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import autoencoders
from autoencoders import (
    Autoencoder,
    AutoencoderConfig,
    Bottleneck,
    LossConfig,
    autoencoder_loss,
    bottlenecks,
    measure_latents,
)
from autoencoders.bottlenecks import NVAEConfig, VQVAE2Config

WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch=4, size=16, seed=0):
    return torch.rand(batch, 3, size, size, generator=generator(seed)) * 2 - 1


def small(bottleneck="kl", seed=0, **changes):
    if bottleneck in ("identity", "linear"):  # settings of a network would be lost on them
        return Autoencoder(AutoencoderConfig(bottleneck=bottleneck))
    if bottleneck.endswith("vq"):
        changes = {"num_codes": 32, "codebook_decay": 0.9, "revive_after": 7, **changes}
    if bottleneck == "vqvae2":
        changes = {"num_codes": 32, "revive_after": 7, "vqvae2": VQVAE2Config(code_width=8), **changes}
    if bottleneck == "nvae":
        changes = {"nvae": NVAEConfig(group_width=8), **changes}
    model = Autoencoder(replace(SMALL, bottleneck=bottleneck, **changes), seed=seed)
    for parameter in model.parameters():  # new blocks start as their shortcuts; trained ones do not stay so
        if parameter.ndim == 4 and not parameter.any():
            torch.nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("name", bottlenecks(plugins=False))
def test_every_bottleneck(name, tmp_path):
    model, x = small(name), images()
    assert isinstance(model.quantize, Bottleneck)
    state = torch.get_rng_state()
    output = model(x, generator=generator())
    assert output.reconstruction.shape == x.shape
    loss = autoencoder_loss(LossConfig(), x, output)
    if name != "identity":
        loss.total.backward()
        idle = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert not [key for key in idle if "to_k.bias" not in key]  # softmax cancels a bias of the keys
    assert all(term.ndim == 0 and term.isfinite() for term in [*loss.terms.values(), *output.metrics.values()])

    model.eval()
    model.calibrate(*measure_latents(model, [x[:3], x[3:]]))
    latents = model.encode(x).sample()
    assert latents.shape == (4, model.latent_channels, 16 // model.factor, 16 // model.factor)
    assert model.decode(latents).shape == x.shape

    model.save_pretrained(tmp_path / "one")
    loaded = Autoencoder.from_pretrained(tmp_path / "one")
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.fingerprint() == model.fingerprint()
    loaded.save_pretrained(tmp_path / "two")
    for file in ("config.json", WEIGHTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    torch.testing.assert_close(loaded.encode(x).mean, model.encode(x).mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded.decode(latents), model.decode(latents), rtol=0, atol=1e-5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", [name for name in bottlenecks(plugins=False) if name not in ("identity", "linear")])
def test_every_bottleneck_learns(name):
    model = small(name, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x = images(8, 8).mul(0.3).add(torch.tensor([-0.5, 0.0, 0.5]).view(3, 1, 1))  # three colours, with noise
    course = []
    for step in range(30):
        output = model(x, generator=generator(step))
        loss = autoencoder_loss(LossConfig("l2"), x, output)
        optimizer.zero_grad()
        loss.total.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        assert model.encoder.conv_in.weight.grad.any()
        optimizer.step()
        course.append(loss.terms["reconstruction"].item())
    assert sum(course[-5:]) < 0.7 * sum(course[:5])


@pytest.mark.parametrize("name", bottlenecks(plugins=False))
def test_calibrated_latents_have_zero_mean_and_unit_variance(name):
    model, x = small(name).eval(), images(batch=8)
    model.calibrate(torch.full((model.latent_channels,), 3.0), torch.full((model.latent_channels,), 0.1))
    model.calibrate(*measure_latents(model, x.split(4)))  # measures raw latents whatever the calibration was
    latents = model.encode(x)
    variance = latents.mean.var((0, 2, 3), unbiased=False)
    if latents.std is not None:
        variance = variance + latents.std.square().mean((0, 2, 3))
    torch.testing.assert_close(latents.mean.mean((0, 2, 3)), torch.zeros(model.latent_channels), rtol=0, atol=1e-5)
    torch.testing.assert_close(variance, torch.ones(model.latent_channels), rtol=0, atol=1e-5)


def test_calibration_does_not_change_reconstruction_nor_training():
    model, x = small().eval(), images()
    plain, trained = model.decode(model.encode(x).mean), model(x, generator=generator())
    model.calibrate(*measure_latents(model, [x]))
    torch.testing.assert_close(model.decode(model.encode(x).mean), plain, rtol=0, atol=1e-5)
    again = model(x, generator=generator())
    assert torch.equal(again.reconstruction, trained.reconstruction)
    assert torch.equal(again.losses["kl"], trained.losses["kl"])


def test_without_calibration_a_folder_keeps_every_bit(tmp_path):
    for name in bottlenecks(plugins=False):
        model, x = small(name).eval(), images()
        model.save_pretrained(tmp_path / name)
        loaded = Autoencoder.from_pretrained(tmp_path / name)
        assert torch.equal(loaded.encode(x).mean, model.encode(x).mean)
        assert torch.equal(loaded(x).reconstruction, model(x).reconstruction)


def test_a_folder_holds_parameters_only_and_a_checkpoint_holds_all(tmp_path):
    model = small("vq").train()
    model(images(), generator=generator())
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / WEIGHTS)) == {name for name, _ in model.named_parameters()}
    state = model.state_dict()
    assert {"quantize.cluster_size", "quantize.code_sum", "quantize.unused_steps", "latents_mean"} <= set(state)
    resumed = small("vq")
    resumed.load_state_dict(state)
    first, second = (m.train()(images(seed=1), generator=generator(1)) for m in (model, resumed))
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert torch.equal(model.quantize.code_sum, resumed.quantize.code_sum)


def test_the_seed_makes_the_weights():
    first, same, other = (Autoencoder(SMALL, seed=seed).fingerprint() for seed in (0, 0, 1))
    assert first == same != other


def test_half_precision_and_channels_last():
    x = images()
    model = small().eval()
    expected = model.decode(model.encode(x).mean)
    last = model.to(memory_format=torch.channels_last)
    encoded = last.encode(x.to(memory_format=torch.channels_last)).mean
    torch.testing.assert_close(last.decode(encoded), expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = small("vq")(x, generator=generator())
        assert output.losses["commitment"].dtype == torch.float32
        assert autoencoder_loss(LossConfig(), x, output).total.isfinite()
    half = small("kl").eval().bfloat16()
    assert half.decode(half.encode(x).mean).dtype == torch.bfloat16


def test_loss_is_latent_diffusions_over_the_numbers_of_an_image():
    model, x = small().double(), images().double()
    output = model(x, generator=generator())
    absolute = (x - output.reconstruction).abs().sum() / len(x)
    squared = (x - output.reconstruction).square().sum() / len(x)
    numbers = x[0].numel()
    for kind, summed in (("l1", absolute), ("l2", squared)):
        loss = autoencoder_loss(LossConfig(kind, kl_weight=0.3), x, output)
        torch.testing.assert_close(loss.total, (summed + 0.3 * output.losses["kl"]) / numbers, rtol=1e-12, atol=0)
        assert list(loss.terms) == ["reconstruction", "kl"]


def test_loss_of_a_vq_model():
    model, x = small("vq", codebook="gradient"), images()
    output = model(x, generator=generator())
    terms = autoencoder_loss(LossConfig(codebook_weight=0.5), x, output)
    both = output.losses["codebook"] + output.losses["commitment"]
    torch.testing.assert_close(terms.total, terms.terms["reconstruction"] + 0.5 * both)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.zeros(1, 3, 15, 16)), "divisible by 2.*15, 16"),
        (lambda m: m.encode(torch.zeros(1, 1, 16, 16)), r"\(B, 3, H, W\).*1, 1, 16"),
        (lambda m: m.encode(torch.zeros(3, 16, 16)), r"got torch.float32 \(3, 16, 16\)"),
        (lambda m: m.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), "expected floats"),
        (lambda m: m.decode(torch.zeros(1, 3, 8, 8)), r"expected \(B, 4, h, w\)"),
        (lambda m: m.train()(torch.zeros(1, 3, 16, 16)), "needs a generator"),
        (lambda m: m.calibrate(torch.zeros(3), torch.ones(3)), r"expected shape \(4,\), got \(3,\)"),
        (lambda m: m.calibrate(torch.zeros(4), torch.zeros(4)), "above 0"),
        (lambda m: m.calibrate(torch.full((4,), torch.nan), torch.ones(4)), "finite"),
        (lambda m: measure_latents(m, []), "at least one batch"),
    ],
)
def test_calls_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call(small().eval())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck": "kll"}, "expected one of kl, none, .*identity, linear, vq, .*vqvae2"),
        ({"block_out_channels": (8, 15)}, "multiples of norm_num_groups 4"),
        ({"block_out_channels": ()}, "1 to 8 widths"),
        ({"block_out_channels": (8,) * 9}, "1 to 8 widths"),
        ({"layers_per_block": 0}, "whole number"),
        ({"layers_per_block": 10**9}, "whole number"),
        ({"latent_channels": float("nan")}, "latent_channels"),
        ({"commitment_beta": float("nan")}, "commitment_beta"),
        ({"codebook_decay": 1.0}, "codebook_decay"),
        ({"attention": "yes"}, "true or false"),
        ({"attention_levels": (2,)}, "levels from 0 to 1"),
        ({"commitment_on": "codebook"}, "gradient"),
        ({"code_channels": 2}, "vq"),
    ],
)
def test_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **settings)


@pytest.mark.parametrize("settings", [{"reconstruction": "l3"}, {"kl_weight": float("nan")}, {"codebook_weight": -1}])
def test_loss_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        LossConfig(**settings)


def rewrite(folder, **entries):
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def replace_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


NAME = "decoder.conv_in.weight"
DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "no such file"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "pickled"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "deep JSON": (lambda f: (f / "config.json").write_text("[" * 100_000), "not valid JSON"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "huge config": (lambda f: (f / "config.json").write_text(" " * (2**20 + 1)), "larger than"),
    "other class": (lambda f: rewrite(f, _class_name="os.system"), "_class_name: expected one of AutoencoderKL"),
    "no class": (lambda f: rewrite(f, _class_name=...), "_class_name"),
    "unknown key": (lambda f: rewrite(f, colour=1), "'colour'"),
    "activation": (lambda f: rewrite(f, act_fn="relu"), "act_fn: only 'silu'"),
    "blocks": (lambda f: rewrite(f, down_block_types=["DownBlock2D"] * 2), "blocks of level 0"),
    "block count": (lambda f: rewrite(f, down_block_types=["DownEncoderBlock2D"]), "one length"),
    "half quantised": (lambda f: rewrite(f, use_quant_conv=False), "both or neither"),
    "channels": (lambda f: rewrite(f, out_channels=4), "out_channels"),
    "NaN scale": (lambda f: rewrite(f, scaling_factor=float("nan")), "NaN is not a number in JSON"),
    "zero scale": (lambda f: rewrite(f, scaling_factor=0), "scaling_factor: expected positive"),
    "giant shift": (lambda f: rewrite(f, shift_factor=10**400), "shift_factor: expected finite"),
    "short mean": (lambda f: rewrite(f, latents_mean=[0.0]), "latents_mean: expected 4 numbers, got 1"),
    "NaN width": (lambda f: rewrite(f, block_out_channels=[8, float("nan")]), "NaN is not a number in JSON"),
    "giant width": (lambda f: rewrite(f, block_out_channels=[8, 4 * 10**9]), "block_out_channels"),
    "wide model": (lambda f: rewrite(f, block_out_channels=[16384, 16384]), r"expected shape .*16384.*, found"),
    "missing": (lambda f: replace_weights(f, lambda t: t.pop(NAME)), f"{NAME}: expected shape .* found nothing"),
    "extra": (lambda f: replace_weights(f, lambda t: t.update(x=torch.ones(1))), "'x': not a part"),
    "shape": (
        lambda f: replace_weights(f, lambda t: t.update({NAME: torch.ones(1)})),
        rf"{NAME}: expected shape \(16, 4, 3, 3\), found \(1,\)",
    ),
    "type": (lambda f: replace_weights(f, lambda t: t.update({NAME: t[NAME].int()})), "floating-point"),
    "NaN weight": (lambda f: replace_weights(f, lambda t: t[NAME].fill_(torch.nan)), f"{NAME}: expected finite"),
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "not a whole safetensors file"),
    "text": (lambda f: (f / WEIGHTS).write_text("hello"), "not a whole safetensors file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(name, tmp_path):
    damage, message = DAMAGES[name]
    small().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as refusal:
        Autoencoder.from_pretrained(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_settings_and_registered_names_import_no_torch():
    root = Path(autoencoders.__file__).parent
    files = [*root.rglob("config.py"), root / "settings.py", root / "bottlenecks" / "__init__.py"]
    files += [root / "bottlenecks" / f"{name}.py" for name in ("registry", "continuous", "discrete")]
    modules = {f"autoencoders.{'.'.join(path.relative_to(root).with_suffix('').parts)}" for path in files}
    for path in files:
        for node in ast.parse(path.read_text()).body:  # what `build` imports is inside functions
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            ours = {name for name in names if name.startswith("autoencoders")}
            assert ours <= modules | {"autoencoders.bottlenecks"} and "torch" not in names, path
