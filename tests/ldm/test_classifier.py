"""The noisy classifier: shapes, files, gradients, and that it learns at all noise levels."""

import dataclasses

import pytest
import torch

from ldm.models.classifier import AttentionPool, ClassifierConfig, NoisyClassifier
from ldm.models.unet import UNet
from ldm.runtime.errors import UserError

TINY = ClassifierConfig(
    sample_size=8,
    num_classes=3,
    block_out_channels=(16, 32),
    attention=(False, True),
    attention_head_dim=8,
    norm_num_groups=8,
    layers_per_block=1,
)


def test_it_is_the_encoder_half_of_the_unet():
    ours = {name: value.shape for name, value in NoisyClassifier(TINY).state_dict().items()}
    unet = {name: value.shape for name, value in UNet(TINY.encoder()).state_dict().items()}
    half = {name for name in unet if not name.startswith(("up_blocks", "conv_out", "conv_norm_out"))}
    assert {name for name in ours if not name.startswith(("pool", "conv_norm_out"))} == half
    assert all(ours[name] == unet[name] for name in half)


def test_pooling_is_multi_head_attention_of_the_mean():
    torch.manual_seed(0)
    pool = AttentionPool(16, pixels=6, heads=4, out_features=5).double()
    x = torch.randn(2, 16, 2, 3, dtype=torch.float64)
    reference = torch.nn.MultiheadAttention(16, 4, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat((pool.to_q.weight, pool.to_kv.weight)))
        reference.in_proj_bias.copy_(torch.cat((pool.to_q.bias, pool.to_kv.bias)))
        reference.out_proj.weight.copy_(torch.eye(16))
        reference.out_proj.bias.zero_()
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat((tokens.mean(1, keepdim=True), tokens), 1) + pool.positions
        expected = pool.to_out(reference(tokens[:, :1], tokens, tokens)[0][:, 0])
        torch.testing.assert_close(pool(x), expected, rtol=0, atol=1e-12)


def test_save_load_and_gradient_of_the_input(tmp_path):
    network = NoisyClassifier(TINY).eval()
    x, t = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 10.0, 500.0, 999.0])
    network.save_pretrained(tmp_path)
    again = NoisyClassifier.from_pretrained(tmp_path)
    assert again.config == TINY
    logits = network(x, t)
    assert logits.shape == (4, 3) and torch.equal(logits, again(x, t))
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(network(leaf, t).log_softmax(-1)[:, 1].sum(), leaf)[0]
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    assert network.double()(x.double(), t.double()).dtype == torch.float64


def test_it_learns_more_where_noise_is_low():
    torch.manual_seed(0)
    network = NoisyClassifier(TINY)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    means = torch.randn(3, 4, 1, 1)

    def noised(t):
        labels = torch.randint(3, t.shape)
        alpha = (1 - t / 1000).view(-1, 1, 1, 1)
        x0 = means[labels] + 0.3 * torch.randn(len(t), 4, 8, 8)
        return alpha * x0 + (1 - alpha**2).sqrt() * torch.randn(len(t), 4, 8, 8), labels

    for _ in range(60):
        t = torch.rand(32) * 999
        x, labels = noised(t)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x, t), labels).backward()
        optimizer.step()
    accuracy = []
    with torch.no_grad():
        for time in (10.0, 999.0):
            t = torch.full((96,), time)
            x, labels = noised(t)
            accuracy.append((network(x, t).argmax(-1) == labels).float().mean().item())
    assert accuracy[0] > 0.95 and accuracy[1] < 0.6


def test_wrong_shapes_and_settings_are_refused(tmp_path):
    with pytest.raises(UserError, match="height and width 8"):
        NoisyClassifier(TINY)(torch.zeros(1, 4, 16, 16), torch.zeros(1))
    for change, message in (
        ({"num_classes": 1}, "num_classes"),
        ({"sample_size": 9}, "multiple of 2"),
        ({"attention_head_dim": 12}, "12"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(TINY, **change)
    UNet(TINY.encoder()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="expected the configuration of a NoisyClassifier"):
        NoisyClassifier.from_pretrained(tmp_path)
