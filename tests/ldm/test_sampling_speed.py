"""A sampling run computes once what follows from its conditions alone; `--feature-cache` and `--compile`."""

import dataclasses
import shutil

import pytest
import torch

from autoencoders import Autoencoder, AutoencoderConfig
from ldm.conditioning.conditioner import Conditioner
from ldm.conditioning.config import ConditioningConfig
from ldm.models.unet import UNet, UNetConfig
from ldm.runtime.compilation import check_compiler, compile_network
from ldm.runtime.errors import UserError
from ldm.sampling.config import Request, SamplingConfig, caveats
from ldm.sampling.forward_process import Process
from ldm.sampling.pipeline import Pipeline
from ldm.training.config import TrainingConfig
from samplers import DiscreteSchedule, VTarget

STEPS = SamplingConfig(num_inference_steps=7, guidance_scale=3.0)


def pipeline(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = ConditioningConfig(text_width=12, text_layers=1, text_heads=2)
        conditioner = Conditioner.build(text, (), ["a red circle", "a blue star"])
        shape = UNetConfig(
            sample_size=8, in_channels=3, out_channels=3, block_out_channels=(16, 32), attention=(False, True),
            layers_per_block=1, norm_num_groups=4, attention_head_dim=8, cross_attention_dim=12, pooled_context_heads=2,
        )  # fmt: skip
        unet = UNet(dataclasses.replace(shape, **changes))
        for parameter in unet.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        vae = Autoencoder(AutoencoderConfig(bottleneck="identity"))
        return Pipeline(vae, unet, conditioner, Process(DiscreteSchedule("cosine"), VTarget()))


def sampled(made, sampling, count=3):
    requests = [Request("a red circle"), Request("a blue star"), Request("")][:count]
    return torch.cat(list(made.generate(requests, sampling, seed=4)))


def counted(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_the_texts_keys_are_made_once_for_each_set_of_branches():
    made = pipeline()
    levels = made.resolve(STEPS).levels
    interval = (levels[4].noise_ratio * 0.99, levels[2].noise_ratio * 1.01)  # 2 steps alone, 3 guided, 2 alone
    attention = made.networks.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    keys, queries, pooled = counted(attention.to_k), counted(attention.to_q), counted(made.networks.unet.add_embedding)
    sampled(made, dataclasses.replace(STEPS, guidance_interval=interval))
    assert (len(keys), len(pooled), len(queries)) == (2, 2, 7)
    sampled(made, STEPS)
    assert (len(keys), len(queries)) == (3, 14)


def test_weights_changed_between_two_runs_are_seen():
    made = pipeline()
    before = sampled(made, STEPS)
    for parameter in made.networks.unet.parameters():
        parameter.data *= 0.9
    fresh = pipeline()
    fresh.networks.unet.load_state_dict(made.networks.unet.state_dict())
    after = sampled(made, STEPS)
    assert torch.equal(after, sampled(fresh, STEPS)) and not torch.equal(after, before)


def test_a_feature_cache_runs_the_deep_part_every_nth_step():
    made = pipeline()
    deep, shallow = counted(made.networks.unet.mid_block), counted(made.networks.unet.conv_in)
    exact = sampled(made, STEPS)
    assert (len(deep), len(shallow)) == (7, 7)
    evaluations, apart = made.evaluations, []
    for every, whole in ((2, 4), (3, 3), (7, 1)):
        deep.clear()
        shallow.clear()
        apart.append((sampled(made, dataclasses.replace(STEPS, feature_cache=every)) - exact).abs().mean())
        assert (len(deep), len(shallow), made.evaluations) == (whole, 7, evaluations)
    assert 0 < apart[0] < apart[1] < apart[2]
    levels = made.resolve(STEPS).levels
    interval = (levels[4].noise_ratio * 0.99, levels[2].noise_ratio * 1.01)
    deep.clear()
    sampled(made, dataclasses.replace(STEPS, feature_cache=5, guidance_interval=interval))
    assert len(deep) == 3, "other branches than a step before: all is made anew"
    assert torch.equal(sampled(made, dataclasses.replace(STEPS, feature_cache=1)), exact)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_cache": 0}, "`feature_cache`: must be 1 or more, got 0"),
        ({"feature_cache": 2, "compile": "default"}, "`feature_cache`: not together with `compile`"),
        ({"compile": "reduce-overhead"}, "`compile` reduce-overhead: CUDA graphs need a CUDA device, this is cpu"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        sampled(pipeline(), dataclasses.replace(STEPS, **changes))


def test_samples_by_kept_features_say_that_they_are_lossy():
    (caveat,) = caveats(dataclasses.replace(STEPS, feature_cache=3))
    assert caveat.startswith("lossy: `feature_cache` 3") and caveats(STEPS) == ()
    with pytest.raises(UserError, match="`compile` reduce-overhead: its graphs overwrite"):
        TrainingConfig(compile="reduce-overhead", gradient_accumulation_steps=2)


def test_a_network_of_one_resolution_has_no_deep_features():
    made = pipeline(block_out_channels=(16,), attention=(False,))
    with pytest.raises(UserError, match="this network has one resolution"):
        sampled(made, dataclasses.replace(STEPS, feature_cache=2))


def test_without_a_compiler_compiling_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(UserError, match=r"`compile` default: no C\+\+ compiler here; install g"):
        check_compiler("default", torch.device("cpu"))


def test_what_torch_cannot_compile_is_an_error_and_not_run_plainly():
    class Breaks(torch.nn.Module):
        def forward(self, x):
            return x * float(x.sum())

    network = Breaks()
    compile_network(network, "default")
    with pytest.raises(UserError, match=r"`compile` default: this network cannot be compiled .*use `compile` none"):
        network(torch.ones(2))
    compile_network(network, "none")
    assert network(torch.ones(2)).tolist() == [2, 2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_compiled_pictures_are_the_plain_ones():
    """Some minutes on one core: pytest -m slow tests/ldm/test_sampling_speed.py"""
    made = pipeline(attention=(False, False))
    plain = sampled(made, STEPS, 2)
    compiled = sampled(made, dataclasses.replace(STEPS, compile="default"), 2)
    assert 0 <= (compiled - plain).abs().max() < 1e-4
    assert torch.equal(sampled(made, STEPS, 2), plain), "and plain again when asked for"
