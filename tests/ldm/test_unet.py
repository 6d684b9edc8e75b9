"""The U-Net against diffusers' `UNet2DConditionModel`, both ways, and its promises of its own."""

import dataclasses
import json

import pytest
import torch
from diffusers import UNet2DConditionModel

from ldm.models.unet import UNet, UNetConfig
from ldm.runtime.errors import UserError

PLAIN = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 32, 48),
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}
CROSS = {
    **PLAIN,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 24,
}
# name -> (keys of diffusers, width of the context, number of class embeddings)
FOREIGN = {
    "class": ({**PLAIN, "mid_block_type": "UNetMidBlock2D", "num_class_embeds": 11}, None, 11),
    "unconditional": (
        {**PLAIN, "cross_attention_dim": (None,) * 3, "resnet_time_scale_shift": "scale_shift"},
        None,
        None,
    ),
    "text": ({**CROSS, "attention_head_dim": (2, 4, 6), "use_linear_projection": True}, 24, None),
    "class and text": ({**CROSS, "num_class_embeds": 4, "transformer_layers_per_block": 2, "freq_shift": 1}, 24, 4),
    "text in the middle only": ({**PLAIN, "cross_attention_dim": 24, "flip_sin_to_cos": False}, 24, None),
    "no middle": ({**CROSS, "mid_block_type": None, "layers_per_block": 1}, 24, None),
    # Stable Diffusion 1.5, LDM text2img-large and LDM cin256, narrow
    "sd15": ({"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 48, "attention_head_dim": 8}, 48, None),
    "ldm text2img": (
        {"block_out_channels": (32, 64, 96, 96), "cross_attention_dim": 40, "attention_head_dim": 8},
        40,
        None,
    ),
    "ldm cin256": (
        {
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (32, 64, 96, 160),
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
            "cross_attention_dim": 64,
            "attention_head_dim": 1,
            "resnet_time_scale_shift": "scale_shift",
            "num_class_embeds": 6,
        },
        64,
        6,
    ),
}
TINY = UNetConfig(
    block_out_channels=(16, 32),
    attention=(False, True),
    norm_num_groups=8,
    attention_head_dim=8,
    layers_per_block=1,
    cross_attention_dim=12,
    num_class_embeds=5,
)


def fill(network, seed=0):
    """Weights with an effect everywhere, zero initialisation included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.data.copy_(noise * scale + (1 if "norm" in name and name.endswith("weight") else 0))
    return network.eval()


def inputs(config, size=(8, 16), dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.in_channels, *size, generator=generator, dtype=dtype)
    context = labels = None
    if config.cross_attention_dim:
        context = torch.randn(2, 5, config.cross_attention_dim, generator=generator, dtype=dtype)
    if config.num_class_embeds:
        labels = torch.tensor([1, config.num_class_embeds - 1])
    return x, torch.tensor([3.0, 977.25], dtype=dtype), labels, context


@pytest.mark.parametrize("name", FOREIGN)
def test_a_diffusers_model_loads_and_ours_loads_there(name, tmp_path):
    keys, width, classes = FOREIGN[name]
    theirs = fill(UNet2DConditionModel(**keys))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = UNet.from_pretrained(tmp_path / "theirs")
    assert (ours.config.cross_attention_dim, ours.config.num_class_embeds) == (width, classes)
    x, t, labels, context = inputs(ours.config)
    with torch.no_grad():
        expected = theirs(x, t, context, class_labels=labels).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x, t, class_labels=labels, context=context), expected, rtol=0, atol=1e-5)

    ours.save_pretrained(tmp_path / "ours")
    again, report = UNet2DConditionModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())  # no missing, unexpected or mismatched key
    assert UNetConfig.from_diffusers(json.loads((tmp_path / "ours" / "config.json").read_text())) == ours.config
    with torch.no_grad():
        torch.testing.assert_close(again(x, t, context, class_labels=labels).sample, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", [None, 24])
@pytest.mark.parametrize("classes", [None, 7])
def test_models_made_here_load_in_diffusers(text, classes, tmp_path):
    config = UNetConfig(
        block_out_channels=(16, 32),
        attention=(True, True),
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=text,
        num_class_embeds=classes,
    )
    ours = fill(UNet(config))
    ours.save_pretrained(tmp_path)
    theirs, report = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    x, t, labels, context = inputs(config)
    with torch.no_grad():
        for time in (t, torch.tensor(500.0)):
            expected = theirs(x, time, context, class_labels=labels).sample
            torch.testing.assert_close(ours(x, time, class_labels=labels, context=context), expected, rtol=0, atol=1e-5)


def test_half_precision_and_float64():
    x, t, labels, context = inputs(TINY, dtype=torch.float64)
    network = fill(UNet(TINY)).double()
    exact = network(x, t, class_labels=labels, context=context)
    assert exact.dtype == torch.float64
    single = network.float()(x.float(), t.float(), class_labels=labels, context=context.float())
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x.float(), t.float(), class_labels=labels, context=context.float())
    half = network.bfloat16()(x.bfloat16(), t, class_labels=labels, context=context.bfloat16())
    assert half.dtype == torch.bfloat16
    for rough in (mixed, half):
        assert (rough.double() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("shift", ["default", "scale_shift"])
def test_channels_last_and_checkpointing_change_nothing(shift):
    config = dataclasses.replace(TINY, resnet_time_scale_shift=shift)
    x, t, labels, context = inputs(config, dtype=torch.float64)
    results = []
    for layout, checkpointing in (("plain", False), ("plain", True), ("channels_last", False)):
        network = fill(UNet(config)).double().train()
        network.gradient_checkpointing = checkpointing
        leaf = x.clone()
        if layout == "channels_last":
            network = network.to(memory_format=torch.channels_last)
            leaf = leaf.to(memory_format=torch.channels_last)
        leaf.requires_grad_()
        output = network(leaf, t, class_labels=labels, context=context)
        output.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        results.append({"output": output.detach(), "x": leaf.grad, **gradients})
    plain, recomputed, last = results
    for name, value in plain.items():
        assert value is not None and torch.equal(recomputed[name], value), name
        torch.testing.assert_close(last[name], value, rtol=1e-9, atol=1e-9)


def test_each_sample_stands_alone_and_any_fitting_size_runs():
    network = fill(UNet(TINY)).double()
    x, t, labels, context = inputs(TINY, size=(6, 10), dtype=torch.float64)
    both = network(x, t, class_labels=labels, context=context)
    assert both.shape == x.shape
    second = network(x[1:], t[1:], class_labels=labels[1:], context=context[1:])
    torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-12)
    moved = network(x, t, class_labels=labels.flip(0), context=context)
    assert (moved - both).abs().amax((1, 2, 3)).min() > 1e-3  # the class matters


def test_a_new_network_predicts_zero_and_learns():
    network = UNet(dataclasses.replace(TINY, num_class_embeds=None, cross_attention_dim=None))
    x, t, _, _ = inputs(TINY)
    assert torch.equal(network(x, t), torch.zeros_like(x))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = (network(x, t) - x).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, 8, 7)}, "H and W divisible by 2"),
        ({"x": torch.zeros(2, 3, 8, 8)}, r"shape \(B, 4, H, W\)"),
        ({"t": torch.zeros(3)}, "t of shape"),
        ({"class_labels": None}, "class_labels: expected 0 to 5"),
        ({"class_labels": torch.zeros(3, dtype=torch.int64)}, "class_labels of shape"),
        ({"context": None}, "context: expected width 12"),
        ({"context": torch.zeros(2, 5, 11)}, "context of shape"),
    ],
)
def test_wrong_inputs_are_refused(change, message):
    x, t, labels, context = inputs(TINY)
    given = {"x": x, "t": t, "class_labels": labels, "context": context, **change}
    with pytest.raises(UserError, match=message):
        UNet(TINY)(**given)
    bare = UNet(dataclasses.replace(TINY, num_class_embeds=None, cross_attention_dim=None))
    with pytest.raises(UserError, match="not conditioned on classes"):
        bare(x, t, class_labels=labels)
    with pytest.raises(UserError, match="not conditioned on text"):
        bare(x, t, context=context)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "UNetMidBlock2DSimpleCrossAttn"),
        ({"block_out_channels": [32, 64, 64]}, "mirror"),
        ({"layers_per_block": [1, 2, 2, 2]}, "layers_per_block"),
        ({"norm_num_groups": 7}, "not divisible by norm_num_groups = 7"),
        ({"block_out_channels": [10**9] * 4}, "1 to 16384"),
        ({"something_new": 3}, "something_new = 3"),
    ],
)
def test_unsupported_configurations_are_named(keys, message):
    with pytest.raises(UserError, match=message):
        UNetConfig.from_diffusers(keys)


def test_wrong_files_are_refused(tmp_path):
    network = UNet(TINY)
    network.save_pretrained(tmp_path)
    weights, config = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "config.json"
    whole, keys = weights.read_bytes(), json.loads(config.read_text())

    config.write_text(json.dumps({**keys, "block_out_channels": [16, 64]}))
    with pytest.raises(UserError, match=r"expected shape .* found"):
        UNet.from_pretrained(tmp_path)
    config.write_text(json.dumps({**keys, "layers_per_block": 2}))
    with pytest.raises(UserError, match="found nothing"):
        UNet.from_pretrained(tmp_path)
    config.write_text(json.dumps({**keys, "_class_name": "AutoencoderKL"}))
    with pytest.raises(UserError, match="expected the configuration of a UNet2DConditionModel"):
        UNet.from_pretrained(tmp_path)
    config.write_text(json.dumps(keys))
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        UNet.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="no such file"):
        UNet.from_pretrained(tmp_path)
