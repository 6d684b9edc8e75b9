"""A training's budget of time, and what it would cost, told without writing."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ldm.runtime.errors import UserError
from ldm.training import dry_run as module
from ldm.training.config import TrainingConfig
from ldm.training.dry_run import saved_bytes


def steps_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "gradient_norm" in line]


class Clock:
    """`time` as the budget sees it: ten seconds pass between two looks at it."""

    def __init__(self):
        self.now = 0

    def monotonic(self):
        self.now += 10
        return self.now


@pytest.fixture
def ten_seconds_a_step(monkeypatch):
    from ldm.training import guards

    monkeypatch.setattr(guards, "time", Clock())


def test_the_budget_counts_over_resumed_parts_and_publishes(ldm, models, tmp_path, ten_seconds_a_step):
    run, whole = tmp_path / "run", tmp_path / "whole"
    flags = ("--text-encoder", "None", "--checkpointing-steps", 1000)
    first = ldm(*models.command("diffusion", run, *flags, "--train-seconds", 30, steps=1000))
    assert first.code == 0 and steps_of(run) == [1, 2, 3], first.err
    assert "validation_loss" in first.out and (run / "model_index.json").is_file()
    again = ldm(*models.command("diffusion", run, *flags, "--train-seconds", 30, steps=1000))
    assert again.code == 0 and steps_of(run) == [1, 2, 3], "it is spent"
    assert ldm(*models.command("diffusion", run, *flags, "--train-seconds", 55, steps=1000)).code == 0
    assert steps_of(run) == [1, 2, 3, 4, 5, 6]
    assert ldm(*models.command("diffusion", whole, *flags, steps=6)).code == 0
    for file in ("model", "ema", "optimizer"):
        mine, theirs = (load_file(place / "checkpoint-6" / f"{file}.safetensors") for place in (run, whole))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), "time decides when it ends, nothing else"
    assert ldm(*models.command("diffusion", run, *flags, "--train-seconds", 1000, steps=7)).code == 0
    assert steps_of(run)[-1] == 7, "the steps end it where they come first"


def test_rates_that_end_at_a_step_take_no_budget():
    for schedule in ("linear", "cosine", "cosine_with_restarts", "polynomial"):
        with pytest.raises(UserError, match=f"a {schedule} rate ends at `max_train_steps`"):
            TrainingConfig(train_seconds=5, lr_scheduler=schedule)
    fingerprint = TrainingConfig(train_seconds=5, lr_scheduler="inverse_sqrt", dry_run=True).fingerprint()
    assert not {"train_seconds", "dry_run"} & fingerprint.keys()
    with pytest.raises(UserError, match="`train_seconds`: expected 0 or more"):
        TrainingConfig(train_seconds=-1)


def test_saved_bytes_are_the_activations_of_a_known_network():
    """x -> W x -> relu -> V: kept are x, the output of relu (one storage, used twice), and no weight."""
    model = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    with saved_bytes(model) as found:
        model(torch.randn(8, 100)).sum().backward()
    assert found["bytes"] == 4 * 8 * (100 + 50)


def figures(out):
    return dict(line.split(": ", 1) for line in out.splitlines())


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion", "classifier", "gan", "prior"])
def test_a_dry_run_tells_the_cost_and_writes_nothing(kind, ldm, models, tmp_path):
    if kind == "prior":
        vq = tmp_path / "vq"
        flags = ("--bottleneck", "vq", "--num-codes", 16, "--latent-channels", 4)
        assert ldm(*models.command("autoencoder", vq, *flags, steps=1)).code == 0
        command = [
            "train", "prior", "--data", "shapes", "--image-size", 16, "--shapes-train", 64, "--shapes-validation", 32,
            "--autoencoder", vq, "--train-batch-size", 16, "--device", "cpu", "--output-dir", tmp_path / "run",
            "--max-train-steps", 1000,
        ]  # fmt: skip
    else:
        own = ("--latents", tmp_path / "latents") if kind in ("diffusion", "classifier") else ()
        command = models.command(kind, tmp_path / "run", *own, steps=1000)
    before = sorted(tmp_path.rglob("*"))
    found = ldm(*command, "--dry-run")
    assert found.code == 0, found.err
    assert sorted(tmp_path.rglob("*")) == before
    assert "GPU" not in found.out
    told = figures(found.out)
    assert told["  images"].startswith("64, ") and told["dry run"] == "nothing was written"
    assert float(re.match(r"([\d.]+) GFLOP", told["operations"])[1]) > 0
    assert re.search(r"s a step .10 steps on cpu., \d+ min", told["time"])
    assert all(name in told["memory"] for name in ("weights", "gradients", "optimizer", "averages", "activations"))


@pytest.fixture
def dry_run(ldm, models, tmp_path, monkeypatch):
    """`dry_run(*flags)`: the figures of a diffusion training, not rounded."""
    measure, results = module.dry_run, []
    monkeypatch.setattr(module, "dry_run", lambda *arguments: results.append(measure(*arguments)) or results[-1])

    def run(*flags):
        assert ldm(*models.command("diffusion", tmp_path / "no", *flags), "--dry-run").code == 0
        return results[-1]

    return run


def test_the_figures_of_a_dry_run_are_those_of_the_training(dry_run, ldm, models, tmp_path):
    """Parameters and checkpoint against the files, operations twice for twice the batch, two averages and the EMA."""
    flags = ("--text-encoder", "None", "--ema-lengths", 0.05, 0.1)
    cost = dry_run(*flags)
    assert ldm(*models.command("diffusion", tmp_path / "run", *flags, steps=1)).code == 0
    weights = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors")
    count = sum(value.numel() for value in weights.values())
    assert sum(cost.parameters.values()) == count and cost.memory["averages"] == 3 * 4 * count
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoint-1").glob("*.safetensors"))
    assert cost.checkpoint == pytest.approx(size, rel=0.15)
    assert dry_run(*flags, "--train-batch-size", 32).flops == 2 * cost.flops
    pieces = ("--train-batch-size", 32, "--gradient-accumulation-steps", 2)
    activations = dry_run(*flags, *pieces).memory["activations"]
    assert activations == pytest.approx(cost.memory["activations"], rel=0.1), "as much as a batch of their size"


def test_a_dry_run_of_a_started_run_tells_what_is_left_and_leaves_it_alone(ldm, models, tmp_path):
    run, flags = tmp_path / "run", ("--text-encoder", "None", "--ema-lengths", 0.1, "--ema-snapshot-steps", 2)
    assert ldm(*models.command("diffusion", run, *flags, steps=4)).code == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = ldm(*models.command("diffusion", run, *flags, steps=4), "--dry-run")
    assert found.code == 0 and "0 min 00 s in all" in found.out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
