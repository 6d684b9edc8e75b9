"""What a U-Net computes once instead of at every step: the same bits, fewer operations; and the lossy feature cache."""

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
def test_cached_conditioning_gives_the_same_output_with_fewer_operations(shift):
    network = filled(dataclasses.replace(CONFIG, resnet_time_scale_shift=shift))
    x, t, labels, context = inputs()
    given = {"class_labels": labels, "context": context}
    with torch.no_grad():
        expected = network(x, t, **given)
        cached = network.cache_conditioning(labels, context)
        torch.testing.assert_close(network(x, t, conditioning=cached), expected, rtol=1e-12, atol=1e-12)
        attention = network.mid_block.attentions[0].transformer_blocks[0].attn2
        keys, values = attention.keys_values(context.flatten(0, 1), 3)
        assert torch.equal(cached.context_kv[attention][0], keys)
        assert torch.equal(cached.context_kv[attention][1], values)
        for other in (labels.flip(0), context), (labels, context.flip(0)):
            changed = network(x, t, conditioning=network.cache_conditioning(*other))
            assert (changed - expected).abs().max() > 1e-3
        without = counts(lambda: network(x, t, **given))["operations"]
        assert counts(lambda: network(x, t, conditioning=cached))["operations"] < 0.87 * without


@pytest.mark.parametrize("shift", ["default", "scale_shift"])
def test_all_projections_of_time_in_one_product_have_the_same_gradients(shift):
    network = filled(dataclasses.replace(CONFIG, resnet_time_scale_shift=shift))
    x, t, labels, context = inputs()
    results = []
    for fused in (False, True):
        network.one_time_product = fused
        output = network(x, t, class_labels=labels, context=context)
        gradients = torch.autograd.grad(output.square().sum(), list(network.parameters()))
        results.append([output, *gradients])
    names = ["output", *dict(network.named_parameters())]
    for name, separate, fused in zip(names, *results, strict=True):
        torch.testing.assert_close(fused, separate, rtol=1e-9, atol=1e-9, msg=name)


def test_a_feature_cache_is_exact_while_its_lower_resolutions_do_not_change():
    """A whole call is exact; a reuse is exact for the same input, cheaper, and approximate for another time."""
    network = filled(CONFIG)
    x, t, labels, context = inputs()
    with torch.no_grad():
        conditioning, cached = network.cache_conditioning(labels, context), FeatureCache(network, 4)
        expected = network(x, t, conditioning=conditioning)
        whole = counts(lambda: network(x, t, conditioning=conditioning))["operations"]
        assert torch.equal(cached(x, t, conditioning=conditioning), expected)
        assert torch.equal(cached(x, t, conditioning=conditioning), expected)
        later = network(x, t / 2, conditioning=conditioning)
        approximate = cached(x, t / 2, conditioning=conditioning)
        assert not torch.equal(approximate, later), "the lower resolutions are of the earlier time"
        assert not torch.equal(approximate, expected), "the highest resolution is of this one"
        assert counts(lambda: cached(x, t, conditioning=conditioning))["operations"] < 0.7 * whole
        assert torch.equal(cached(x, t / 2, conditioning=conditioning), later), "every fourth call is whole"
        other = network.cache_conditioning(labels.flip(0), context)
        assert torch.equal(cached(x, t, conditioning=other), network(x, t, conditioning=other))


def test_checkpointing_goes_with_one_product():
    network = filled(CONFIG).train()
    network.one_time_product = True
    x, t, labels, context = inputs()
    results = []
    for checkpointing in (False, True):
        network.gradient_checkpointing = checkpointing
        output = network(x, t, class_labels=labels, context=context)
        results.append(torch.autograd.grad(output.square().sum(), list(network.parameters())))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_cached_conditioning_of_another_batch_is_refused():
    network = filled(CONFIG)
    x, t, labels, context = inputs()
    with pytest.raises(UserError, match="class_labels of shape"):
        network(x[:2], t[:2], conditioning=network.cache_conditioning(labels, context))
