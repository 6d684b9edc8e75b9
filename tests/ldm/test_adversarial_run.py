"""A discriminator in the training loop and on the command line; perceptual losses; the best model of a run."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoders import Autoencoder, AutoencoderConfig, Generator, LossConfig
from autoencoders.losses import AdversarialConfig, DiscriminatorConfig
from ldm.data.shapes import ShapesData
from ldm.evaluation.metrics.perceptual import BACKBONES, lpips_distance
from ldm.runtime.distributed import SINGLE_PROCESS
from ldm.runtime.errors import UserError
from ldm.training.adversary import AdversarialTrainer
from ldm.training.config import TrainingConfig
from ldm.training.evaluations import keep_best
from ldm.training.randomness import BatchShard, StepRandom
from ldm.training.tasks.autoencoder import AutoencoderTask
from ldm.training.tasks.settings import AutoencoderRun

CPU = torch.device("cpu")
ADVERSARIAL = [
    "--adversarial-weight", 0.5, "--adaptive-max", 1e4, "--discriminator-start", 1, "--discriminator-warmup", 1,
    "--adversarial-ramp", 2, "--discriminator-width", 4, "--discriminator-layers", 2,
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("quick_networks")


@pytest.fixture(scope="module")
def tiny():
    return ShapesData("train", 16, size=(32, 16)), ShapesData("validation", 16, size=(32, 16))


def settings(**changes):
    return AutoencoderRun(
        autoencoder=AutoencoderConfig(bottleneck="none", block_out_channels=(8, 8), norm_num_groups=4, attention=False),
        loss=LossConfig("l2"),
        adversarial=AdversarialConfig(0.5, adaptive_max=1e4, discriminator_start=0, adversarial_ramp=0),
        discriminator=DiscriminatorConfig(discriminator_width=4, discriminator_layers=2, spectral_norm=True),
        training=TrainingConfig(max_train_steps=10),
        **changes,
    )


def test_gradients_do_not_leak_between_model_and_adversary(tiny):
    task = AutoencoderTask(settings(), *tiny, CPU)
    adversary = AdversarialTrainer(task.adversary, task.config.training, CPU, SINGLE_PROCESS)
    batch = torch.stack([tiny[0][index].image for index in range(8)])
    random = StepRandom(0, 0, 0, BatchShard(8), CPU)
    frozen = copy.deepcopy(adversary.model).eval().requires_grad_(False)
    before = copy.deepcopy(adversary.model.state_dict())
    with adversary.frozen():
        loss = task.loss(task.model, batch, random)
        loss.total.backward()
    assert all(weight.grad is None for weight in adversary.model.parameters()), "the model's step reached it"
    assert all(before[name].equal(value) for name, value in adversary.model.state_dict().items()), "its state moved"
    # the same gradient as against a copy that cannot learn, with the loss and its weight written out here
    twin = Autoencoder(task.config.autoencoder)
    made = twin(batch, generator=torch.Generator()).reconstruction
    compared, fooled = (made - batch).square().mean(), -frozen(made).mean()
    kernel = twin.decoder.conv_out.weight
    norms = [torch.autograd.grad(part, kernel, retain_graph=True)[0].norm() for part in (compared, fooled)]
    (compared + 0.5 * (norms[0] / (norms[1] + 1e-4)).detach() * fooled).backward()
    mine = {name: weight.grad.clone() for name, weight in task.model.named_parameters()}
    for name, weight in twin.named_parameters():
        torch.testing.assert_close(mine[name], weight.grad, rtol=1e-4, atol=1e-7)
    adversary.forward_backward(batch, loss.generated, random, 1)
    assert all(weight.grad is not None for weight in adversary.model.parameters())
    assert all(mine[name].equal(weight.grad) for name, weight in task.model.named_parameters()), "its step reached us"
    assert not loss.generated.requires_grad


@pytest.mark.parametrize("flags", [["--coder", "vit"], ["--bottleneck", "vqvae2"], ["--bottleneck", "nvae"]])
def test_every_kind_of_autoencoder_trains_against_a_discriminator(models, ldm, tmp_path, flags):
    found = ldm(*models.command("autoencoder", tmp_path / "run", *ADVERSARIAL, *flags, steps=2))
    assert found.code == 0, found.err
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["adversarial"] and last["adaptive_weight"] > 0


@pytest.mark.parametrize("objective", ["wgan", "lsgan", "minimax"])
def test_both_networks_learn_and_a_wgan_critic_stays_within_its_clip(models, ldm, tmp_path, objective):
    command = models.command("autoencoder", tmp_path / "run", *ADVERSARIAL, "--objective", objective, steps=4)
    assert ldm(*command, "--checkpointing-steps", 1, "--checkpoints-total-limit", 9).code == 0
    first, last = (load_file(tmp_path / "run" / f"checkpoint-{step}" / "opponent.safetensors") for step in (1, 4))
    assert any(not first[name].equal(last[name]) for name in first)
    largest = max(float(value.abs().max()) for value in last.values())
    assert largest <= 0.01 if objective == "wgan" else largest > 0.02
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    entries = [entry for entry in lines if "adversarial" in entry]
    assert [entry["step"] for entry in entries] == [2, 3, 4] and all(entry["adaptive_weight"] > 0 for entry in entries)


def test_two_processes_train_as_one(models, ldm, tmp_path):
    """Without randomness in the bottleneck the sums are the same; the adaptive weight is that of both together."""
    flags = [*ADVERSARIAL, "--objective", "wgan_gp", "--bottleneck", "none", "--adam-epsilon", 1e-2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert ldm(*models.command("autoencoder", tmp_path / "one", *flags, steps=4)).code == 0
    run = [sys.executable, *torchrun, "-m", "ldm", *models.command("autoencoder", tmp_path / "two", *flags, steps=4)]
    subprocess.run(run, check=True, timeout=900, capture_output=True, env=environment, cwd=tmp_path)
    for file in ("model", "ema", "opponent", "opponent_optimizer"):
        one, two = (load_file(tmp_path / name / "checkpoint-4" / f"{file}.safetensors") for name in ("one", "two"))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)


def test_a_discriminator_that_breaks_is_named(models, ldm, tmp_path):
    flags = [
        *ADVERSARIAL,
        "--objective",
        "wgan_gp",
        "--discriminator-learning-rate",
        900.0,
        "--discriminator-warmup",
        0,
    ]
    found = ldm(*models.command("autoencoder", tmp_path / "run", *flags, "--gradient-penalty-weight", 1e6, steps=300))
    assert found.code == 1 and "not finite: " in found.err


def test_a_gan_trains_publishes_and_is_sampled(models, ldm, refused, tmp_path):
    run = tmp_path / "gan"
    assert ldm(*models.command("gan", run, "--validation-fid", "--discriminator-rounds", 2, steps=6)).code == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in lines if "adversarial" in entry] == [2, 4, 6]
    best = json.loads((run / "best" / "best.json").read_text())
    assert best["measure"].startswith("FD[trained-cnn:") and best["value"] > 0 and best["step"] == 6
    assert (run / "best" / "generator" / "config.json").is_file() and list((run / "samples").glob("*.png"))
    for name, count, size in (("a", 3, 2), ("b", 1, 1)):
        out = ["--num-images", count, "--batch-size", size, "--seed", 5, "--output-dir", tmp_path / name]
        assert ldm("sample", run, "--device", "cpu", *out).code == 0
    assert (tmp_path / "a" / "000000.png").read_bytes()[:2000] == (tmp_path / "b" / "000000.png").read_bytes()[:2000]
    refused(["sample", run, "--class-label", "0", "--output-dir", tmp_path / "c"], "knows no classes")
    refused(["sample", run, "--guidance-scale", "3", "--output-dir", tmp_path / "c"], "--guidance-scale")
    model = Generator.from_pretrained(run / "generator")
    again = tmp_path / "again"
    model.save_pretrained(again)
    config = json.loads((again / "config.json").read_text())
    for change, word in (({"noise_size": 10**6}, "noise_size"), ({"x": 1}, "'x'"), ({"noise_channels": 5}, "shape")):
        (again / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=word):
            Generator.from_pretrained(again)


def test_measuring_a_gan_does_not_change_it(models, ldm, tmp_path):
    kept = []
    for often in (1, 4):
        run = tmp_path / str(often)
        flags = ["--validation-steps", often, "--ema-decay", 0, "--discriminator-rounds", 2]
        assert ldm(*models.command("gan", run, *flags, steps=4)).code == 0
        kept.append([load_file(run / "checkpoint-4" / f"{file}.safetensors") for file in ("model", "opponent")])
        kept[-1].append(load_file(run / "generator" / "diffusion_pytorch_model.safetensors"))
    for one, other in zip(*kept, strict=True):
        assert all(value.equal(other[name]) for name, value in one.items())
    trained, published = kept[0][0], kept[0][2]
    changed = {name for name, value in published.items() if not value.equal(trained[name])}
    assert changed == {name for name in trained if "running" in name}  # the statistics of these weights


def test_the_best_model_is_kept(models, ldm, tmp_path):
    published = []

    def publish(folder):
        published.append(folder)
        (folder / "model").write_text(str(len(published)))

    for step, value in enumerate([3.0, 2.0, float("nan"), 2.5, 2.0]):
        keep_best(tmp_path, "rF", {"psnr": 1.0, "rFID": value}, step, publish)
    assert not keep_best(tmp_path, "rF", {"psnr": 1.0}, 9, publish)
    assert json.loads((tmp_path / "best" / "best.json").read_text()) == {"measure": "rFID", "value": 2.0, "step": 1}
    assert (tmp_path / "best" / "model").read_text() == "2" and len(published) == 2
    run = tmp_path / "run"
    assert ldm(*models.command("autoencoder", run, "--validation-rfid", "--validation-steps", 3, steps=6)).code == 0
    best = json.loads((run / "best" / "best.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {entry["step"]: entry["validation"][best["measure"]] for entry in lines if "validation" in entry}
    assert best["measure"].startswith("rFD[trained-cnn:") and best["value"] == min(found.values())
    assert found[best["step"]] == best["value"] and found.keys() == {3, 6}
    train = models.command(
        "diffusion", tmp_path / "on", "--autoencoder", run / "best", "--latents", tmp_path / "lat", steps=1
    )
    assert ldm(*train).code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([*ADVERSARIAL, "--discriminator-start", 6], ["--discriminator-start 6", "beyond the run's 6 steps"]),
        ([*ADVERSARIAL, "--discriminator-layers", 3], ["--discriminator-layers", "at most 2 for 16 pixels"]),
        ([*ADVERSARIAL, "--objective", "hings"], ["hings"]),
        ([*ADVERSARIAL, "--adversarial-weight", -1], ["adversarial_weight"]),
        (["--perceptual", "lpips"], [BACKBONES["vgg"], "--lpips-weights", "torch hub's cache"]),
        (["--perceptual", "lpips", "--lpips-weights", __file__], ["SHA-256", "not opened"]),
        (["--decoder-output", "logit_laplace"], ["--reconstruction logit_laplace"]),
        (["--reconstruction", "logit_laplace", "--bottleneck", "linear"], ["linear"]),
        (["--adversarial-weight", 1, "--bottleneck", "linear"], ["linear autoencoder", "closed form"]),
        (["--validation-rfid", "--validation-images", 2], ["--validation-rfid", "4 or more"]),
        (["--kl-warmup-steps", -1], ["kl_warmup_steps"]),
    ],
)
def test_refusals(models, refused, tmp_path, monkeypatch, flags, words):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    refused(models.command("autoencoder", tmp_path / "run", *flags), *words)


def test_refusals_of_a_gan(models, refused, tmp_path):
    refused(models.command("gan", tmp_path / "run", "--noise-size", 8), "--image-size 16", "makes 32 pixels")
    refused(models.command("gan", tmp_path / "run", "--train-batch-size", 1), "--train-batch-size", "2 images")
    refused(models.command("gan", tmp_path / "run", "--discriminator-rounds", 7), "--discriminator-rounds 7")


def test_lpips_is_that_of_the_package_frozen_and_not_in_the_checkpoint(tmp_path):
    import lpips

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)  # a backbone at random stands for the real one
    parts = dict(theirs.net.named_parameters())
    state = {f"features.{name.split('.', 1)[1]}": value.detach().clone() for name, value in parts.items()}
    save_file(state, tmp_path / "alex.safetensors")
    ours = lpips_distance("alex", str(tmp_path / "alex.safetensors"))
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    a.requires_grad_(True)
    found = ours(a, b)
    assert torch.allclose(found, theirs(a, b).flatten()) and found.shape == (2,)
    found.sum().backward()
    assert a.grad.abs().sum() > 0 and not ours(a.detach(), b).requires_grad, "the weights are frozen"
    state["features.0.weight"] = torch.zeros(1, 3, 11, 11)
    save_file(state, tmp_path / "alex.safetensors")
    with pytest.raises(UserError, match=r"features\.0\.weight: expected shape"):
        lpips_distance("alex", str(tmp_path / "alex.safetensors"))


def test_features_of_the_data_make_a_loss(models, ldm, tmp_path, tiny):
    run = tmp_path / "run"
    flags = ["--perceptual", "features", "--perceptual-weight", 0.5]
    assert ldm(*models.command("autoencoder", run, *flags, steps=2)).code == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]
    parts = first["reconstruction"] + 0.5 * first["perceptual"] + 1e-6 / 768 * first["kl"]
    assert first["loss"] == pytest.approx(parts, rel=1e-5) and first["perceptual"] > 0
    kept = load_file(run / "checkpoint-2" / "model.safetensors")
    assert all(
        name.split(".")[0] in {"encoder", "decoder", "quant_conv", "post_quant_conv"} or "_" in name for name in kept
    )
    facts = json.loads((run / "run.json").read_text())["facts"]
    assert len(facts["perceptual"]["network"]) == 16


def test_the_weight_of_the_kl_rises_step_by_step(models, ldm, tmp_path):
    flags = ["--kl-weight", 0.5, "--kl-warmup-steps", 2]
    assert ldm(*models.command("autoencoder", tmp_path / "run", *flags, steps=4)).code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    weights = [(entry["loss"] - entry["reconstruction"]) * 768 / entry["kl"] for entry in lines if "loss" in entry]
    assert weights == pytest.approx([0, 0.25, 0.5, 0.5], abs=1e-3)


def test_logit_laplace_is_one_flag_and_diffusion_draws_on_it(models, ldm, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    assert ldm(*models.command("autoencoder", run, "--reconstruction", "logit_laplace")).code == 0
    model = Autoencoder.from_pretrained(run / "vae")
    assert model.decoder.conv_out.out_channels == 6
    train = models.command("diffusion", tmp_path / "on", "--autoencoder", run, "--latents", tmp_path / "lat", steps=1)
    assert ldm(*train).code == 0
    short = ["--device", "cpu", "--num-inference-steps", "2", "--num-images", "1", "--output-dir", out]
    assert ldm("sample", tmp_path / "on", *short).code == 0 and (out / "000000.png").is_file()
    assert json.loads((tmp_path / "on" / "model_index.json").read_text())["vae"][1] == "LogitLaplaceAutoencoderKL"


def test_earlier_runs_have_the_same_fingerprint(tiny):
    """Settings that are off are not in it, so that runs from before them go on."""
    plain = replace(settings(), adversarial=AdversarialConfig())
    facts = AutoencoderTask(plain, *tiny, CPU).fingerprint
    assert facts.keys() == {"data", "autoencoder", "loss", "training"}
    assert facts["loss"].keys() == {"reconstruction", "kl_weight", "codebook_weight"}
    assert "decoder_output" not in facts["autoencoder"]
    other = AutoencoderTask(replace(plain, loss=LossConfig("huber", huber_delta=0.5)), *tiny, CPU).fingerprint["loss"]
    assert other["huber_delta"] == 0.5
