"""Vector quantisation: loss, gradients, running means, revival."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed

from autoencoders import AutoencoderConfig
from autoencoders.bottlenecks import vector_quantizer as module
from autoencoders.bottlenecks.vector_quantizer import VectorQuantizer, perplexity, straight_through


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quantizer(num_codes=8, channels=3, **options):
    made = VectorQuantizer(num_codes, channels, **options).double()
    made.embedding.weight.data.normal_(generator=generator(1))
    if made.ema:
        made.code_sum.copy_(made.embedding.weight.data)
    return made


def latents(batch=2, channels=3, size=4, seed=0):
    return torch.randn(batch, channels, size, size, dtype=torch.float64, generator=generator(seed))


def brute_force(codes, z):
    distance = (z.permute(0, 2, 3, 1)[..., None, :] - codes).square().sum(-1)  # (B, h, w, K)
    return distance.argmin(-1)


@pytest.mark.parametrize("on", ["encoder", "codebook"])
def test_loss_is_the_formula_and_beta_is_where_it_belongs(on):
    model, z = quantizer(codebook="gradient", beta=0.25, beta_on=on), latents()
    codes = model.embedding.weight.detach()
    squared = (z - codes[brute_force(codes, z)].permute(0, 3, 1, 2)).square().mean()
    losses = model(z, generator()).losses
    weights = {"codebook": 1.0, "commitment": 0.25} if on == "encoder" else {"codebook": 0.25, "commitment": 1.0}
    for name, weight in weights.items():
        torch.testing.assert_close(losses[name], weight * squared, rtol=1e-12, atol=0)


def test_each_term_moves_only_its_own_side():
    model, z = quantizer(codebook="gradient"), latents().requires_grad_()
    losses = model(z, generator()).losses
    sides = [z, model.embedding.weight]
    of_codebook = torch.autograd.grad(losses["codebook"], sides, allow_unused=True, retain_graph=True)
    of_commitment = torch.autograd.grad(losses["commitment"], sides, allow_unused=True)
    assert of_codebook[0] is None
    assert of_codebook[1].abs().sum() > 0
    assert of_commitment[0].abs().sum() > 0
    assert of_commitment[1] is None


def test_straight_through_gives_the_code_forward_and_the_identity_backward():
    z, q = latents().requires_grad_(), latents(seed=1).requires_grad_()
    out = straight_through(z, q)
    torch.testing.assert_close(out, q)
    upstream = latents(seed=2)
    of_z, of_q = torch.autograd.grad(out, [z, q], upstream, allow_unused=True)
    assert torch.equal(of_z, upstream)
    assert of_q is None


def test_nearest_in_slices_is_the_nearest(monkeypatch):
    model, z = quantizer(num_codes=16), latents(batch=4)
    expected = brute_force(model.embedding.weight.detach(), z)
    assert torch.equal(model.indices(z), expected)
    monkeypatch.setattr(module, "_MAX_DISTANCES", 16 * 5)
    assert torch.equal(model.indices(z), expected)
    torch.testing.assert_close(model.decode(z), model.lookup(expected))


def test_perplexity():
    assert perplexity(torch.tensor([7.0, 0.0, 0.0])).item() == pytest.approx(1.0)
    assert perplexity(torch.full((9,), 3.0)).item() == pytest.approx(9.0)
    half = perplexity(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    assert half.item() == pytest.approx(2**1.5)  # the entropy is 3/2 bits


def test_ema_codes_tend_to_the_means_of_their_members():
    model, z = quantizer(num_codes=4, codebook="ema", codebook_decay=0.5).train(), latents(batch=8)
    for _ in range(200):
        index = model.indices(z)
        model(z, None)
    vectors, index = z.permute(0, 2, 3, 1).flatten(0, 2), index.flatten()
    assert torch.equal(index, model.indices(z).flatten())  # settled
    for code in index.unique():
        torch.testing.assert_close(model.embedding.weight[code], vectors[index == code].mean(0), rtol=0, atol=1e-5)
    assert "codebook" not in model(z, None).losses
    assert not model.embedding.weight.requires_grad


def test_one_ema_step_by_hand_is_tame():
    model, z = quantizer(codebook="ema", codebook_decay=0.99).train(), latents()
    before = model.embedding.weight.detach().clone()
    index = brute_force(before, z).flatten()
    members = torch.nn.functional.one_hot(index, 8).double()
    size = 0.99 + 0.01 * members.sum(0)
    sums = 0.99 * before + 0.01 * members.T @ z.permute(0, 2, 3, 1).flatten(0, 2)
    smooth = (size + 1e-5) / (size.sum() + 8e-5) * size.sum()
    model(z, None)
    torch.testing.assert_close(model.embedding.weight.detach(), sums / smooth[:, None], rtol=1e-6, atol=1e-6)
    assert (model.embedding.weight - before).abs().max() < 0.5


def test_evaluation_changes_nothing():
    model = quantizer(codebook="ema", revive_after=1).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = model(latents(), None).metrics
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert metrics["used_codes"] == len(model.indices(latents()).unique())


@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_revival_brings_dead_codes_into_use(codebook):
    z = latents(batch=16, size=8)
    used = {}
    for revive_after in (0, 3):
        model = VectorQuantizer(128, 3, codebook=codebook, revive_after=revive_after, codebook_decay=0.9).double()
        model.embedding.weight.data.uniform_(5.0, 6.0, generator=generator())  # far from all the data
        if model.ema:
            model.code_sum.copy_(model.embedding.weight.data)
        draws = generator(4)
        for _ in range(60):
            output = model.train()(z, draws)
        used[revive_after] = output.metrics["used_codes"].item() / 128
        assert output.metrics["perplexity"] <= output.metrics["used_codes"] + 1e-6
    assert used[3] > 0.9
    assert used[0] < 0.5


def test_revival_is_the_generators_alone_and_leaves_the_graph_sound():
    results = []
    for _ in range(2):
        model, z = quantizer(num_codes=64, codebook="gradient", revive_after=1), latents().requires_grad_()
        state = torch.get_rng_state()
        output = model.train()(z, generator(5))
        (output.latents.sum() + sum(output.losses.values())).backward()
        assert torch.equal(state, torch.get_rng_state())
        results.append(model.embedding.weight.detach().clone())
    assert torch.equal(*results)
    with pytest.raises(ValueError, match="generator"):
        model(z, None)


def test_bare_codes_restart_the_running_sums_and_a_checkpoint_does_not():
    trained = quantizer(codebook="ema").train()
    trained(latents(), None)
    bare, resumed = quantizer(codebook="ema"), quantizer(codebook="ema")
    bare.load_state_dict({"embedding.weight": trained.embedding.weight}, strict=False)
    assert torch.equal(bare.code_sum, trained.embedding.weight)
    assert torch.equal(bare.cluster_size, torch.ones(8, dtype=torch.float64))
    resumed.load_state_dict(trained.state_dict())
    assert torch.equal(resumed.code_sum, trained.code_sum)


KINDS = ("vq", "cosine_vq", "product_vq", "residual_vq")


def train_steps(folder):
    """What each process of the test below runs: its share of the batches; its codebooks into files of its rank."""
    torch.set_num_threads(1)
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if processes > 1:
        distributed.init_process_group("gloo")
    for kind in KINDS:
        config = AutoencoderConfig(bottleneck=kind, num_codes=32, num_quantizers=2, revive_after=2, codebook_decay=0.9)
        model = config.options.build(config).double().train()
        model.initialise(2 * latents(batch=16, seed=77, channels=4), generator(1))
        draws = generator(100 + rank)
        for step in range(12):
            z = latents(batch=4, seed=step, channels=4).chunk(processes)[rank]
            metrics = model(z, draws).metrics
        tensors = {**model.state_dict(), **{name: value.double() for name, value in metrics.items()}}
        save_file({name: value.contiguous() for name, value in tensors.items()}, f"{folder}/{kind}-{rank}")
    if processes > 1:
        distributed.destroy_process_group()


def test_two_processes_of_torchrun_train_the_codebooks_of_one(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    train_steps(tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    subprocess.run([*command, str(tmp_path / "two")], check=True, timeout=900, capture_output=True)
    for kind in KINDS:
        alone = load_file(tmp_path / "one" / f"{kind}-0")
        first, second = (load_file(tmp_path / "two" / f"{kind}-{rank}") for rank in range(2))
        assert any(name.endswith("unused_steps") and value.sum() > 0 for name, value in alone.items())
        for name, expected in alone.items():
            torch.testing.assert_close(first[name], expected, rtol=0, atol=1e-5)
            assert torch.equal(first[name], second[name])


if __name__ == "__main__":
    train_steps(sys.argv[1])
