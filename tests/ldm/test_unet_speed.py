"""What a U-Net does once instead of at every step: the same bits, fewer operations, and one shortcut that is lossy."""

import dataclasses

import pytest
import torch

from ldm.models.caches import FeatureCache
from ldm.models.unet import UNet, UNetConfig
from ldm.runtime.errors import UserError
from tools.bench.counts import counts

CONFIG = UNetConfig(
    block_out_channels=(16, 32),
    attention=(True, True),
    norm_num_groups=8,
    attention_head_dim=8,
    layers_per_block=1,
    cross_attention_dim=12,
    pooled_context_heads=3,
    num_class_embeds=5,
)


def filled(config, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return network.eval()


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 8, 8, generator=generator, dtype=dtype)
    context = torch.randn(3, 5, 12, generator=generator, dtype=dtype)
    return x, torch.tensor([0.0, 400.5, 999.0], dtype=dtype), torch.tensor([4, 0, 2]), context


@pytest.mark.parametrize("shift", ["default", "scale_shift"])
def test_prepared_conditions_give_the_same_output_with_fewer_operations(shift):
    network = filled(dataclasses.replace(CONFIG, resnet_time_scale_shift=shift))
    x, t, labels, context = inputs()
    given = {"class_labels": labels, "context": context}
    with torch.no_grad():
        expected = network(x, t, **given)
        prepared = network.prepare(labels, context)
        torch.testing.assert_close(network(x, t, prepared=prepared), expected, rtol=1e-12, atol=1e-12)
        attention = network.mid_block.attentions[0].transformer_blocks[0].attn2
        keys, values = attention.keys_values(context.flatten(0, 1), 3)
        assert torch.equal(prepared.known[attention][0], keys)
        assert torch.equal(prepared.known[attention][1], values)
        for other in (network.prepare(labels.flip(0), context), network.prepare(labels, context.flip(0))):
            assert (network(x, t, prepared=other) - expected).abs().max() > 1e-3
        without = counts(lambda: network(x, t, **given))["operations"]
        assert counts(lambda: network(x, t, prepared=prepared))["operations"] < 0.87 * without


@pytest.mark.parametrize("shift", ["default", "scale_shift"])
def test_all_projections_of_time_in_one_product_have_the_same_gradients(shift):
    network = filled(dataclasses.replace(CONFIG, resnet_time_scale_shift=shift))
    x, t, labels, context = inputs()
    found = []
    for at_once in (False, True):
        network.one_time_product = at_once
        output = network(x, t, class_labels=labels, context=context)
        gradients = torch.autograd.grad(output.square().sum(), list(network.parameters()))
        found.append([output, *gradients])
    names = ["output", *dict(network.named_parameters())]
    for name, apart, together in zip(names, *found, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9, msg=name)


def test_kept_deep_features_are_exact_while_nothing_below_changes():
    """Filling is exact; reusing is exact for the same input, cheaper, and rough for another time."""
    network = filled(CONFIG)
    x, t, labels, context = inputs()
    given = {"class_labels": labels, "context": context}
    with torch.no_grad():
        expected, deep = network(x, t, **given), FeatureCache()
        assert torch.equal(network(x, t, **given, deep=deep), expected)
        assert torch.equal(network(x, t, **given, deep=deep), expected)
        later = network(x, t / 2, **given)
        rough = network(x, t / 2, **given, deep=deep)
        assert not torch.equal(rough, later), "what is below is of the earlier time"
        assert not torch.equal(rough, expected), "the highest resolution is of this one"
        whole = counts(lambda: network(x, t, **given))["operations"]
        assert counts(lambda: network(x, t, **given, deep=deep))["operations"] < 0.7 * whole


def test_checkpointing_goes_with_one_product():
    network = filled(CONFIG).train()
    network.one_time_product = True
    x, t, labels, context = inputs()
    found = []
    for checkpointing in (False, True):
        network.gradient_checkpointing = checkpointing
        output = network(x, t, class_labels=labels, context=context)
        found.append(torch.autograd.grad(output.square().sum(), list(network.parameters())))
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(plain, recomputed)


def test_prepared_conditions_of_another_batch_are_refused():
    network = filled(CONFIG)
    x, t, labels, context = inputs()
    with pytest.raises(UserError, match="class_labels of shape"):
        network(x[:2], t[:2], prepared=network.prepare(labels, context))
