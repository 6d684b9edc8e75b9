"""The parts of the training loop against closed forms, and the loop on a task small enough to follow by hand."""

import json
import math
import random
import shutil
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file
from torch import nn

from ldm.runtime.errors import UserError
from ldm.training.averages import ExponentialMovingAverage
from ldm.training.checkpoint import checkpoints, damage, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from ldm.training.config import TrainingConfig
from ldm.training.loop import train
from ldm.training.optimizers import AdamW, clip_gradients, make_optimizer, orthogonalized, scheduled_rate
from ldm.training.randomness import BatchPlan, BatchShard, StepRandom
from ldm.training.run_folder import RunFolder
from ldm.training.task import Loss, Task

CPU = torch.device("cpu")


def indices(plan):
    return [index for call in plan for index, _ in call]


def test_an_epoch_visits_every_example_once_across_batch_borders():
    length, batch = 10, 4  # two and a half batches an epoch
    order = indices(BatchPlan(length, 3, BatchShard(batch), 0, 10))
    epochs = [order[start : start + length] for start in range(0, 40, length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4, "each epoch has its own order"
    assert order != indices(BatchPlan(length, 4, BatchShard(batch), 0, 10))


def test_a_batch_larger_than_the_data_is_full():
    order = indices(BatchPlan(3, 0, BatchShard(8), 0, 3))
    assert len(order) == 24 and [order.count(index) for index in range(3)] == [8, 8, 8]


def test_the_plan_depends_neither_on_where_it_starts_nor_on_how_it_is_shared():
    whole = list(BatchPlan(10, 3, BatchShard(8), 0, 6))
    assert list(BatchPlan(10, 3, BatchShard(8), 4, 6)) == whole[4:]
    for accumulation, processes in ((2, 1), (1, 2), (2, 2), (4, 2)):
        shards = [BatchShard(8, accumulation, rank, processes) for rank in range(processes)]
        plans = [list(BatchPlan(10, 3, shard, 0, 6)) for shard in shards]
        assert all(len(plan) == len(BatchPlan(10, 3, shards[0], 0, 6)) for plan in plans)
        for step in range(6):
            calls = [plan[step * accumulation + micro] for micro in range(accumulation) for plan in plans]
            assert list(chain.from_iterable(calls)) == whole[step]


def test_random_numbers_meet_their_example_however_the_batch_is_shared():
    def numbers(step=7, micro=0, shard=None, purpose="noise"):
        shard = shard or BatchShard(8)
        drawn = StepRandom(0, step, micro, shard, CPU)
        return drawn.normal(purpose, (2, 3)), drawn.uniform(purpose), drawn.integers(purpose, 10**6)

    whole = numbers()
    for accumulation, processes in ((4, 1), (1, 4), (2, 2)):
        shards = [BatchShard(8, accumulation, rank, processes) for rank in range(processes)]
        parts = [numbers(micro=micro, shard=shard) for micro in range(accumulation) for shard in shards]
        assert all(
            torch.equal(torch.cat(cut), uncut) for cut, uncut in zip(zip(*parts, strict=True), whole, strict=True)
        )
    for other in (numbers(step=8), numbers(purpose="time")):
        assert not any(torch.equal(a, b) for a, b in zip(other, whole, strict=True))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rates_are_their_closed_form(schedule):
    config = TrainingConfig(learning_rate=2.0, lr_scheduler=schedule, lr_warmup_steps=4, max_train_steps=20)
    rates = [scheduled_rate(step, config) for step in range(20)]
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])
    x = np.arange(16) / 16
    after = {"constant": 2 + 0 * x, "linear": 2 * (1 - x), "cosine": 1 + np.cos(np.pi * x)}
    np.testing.assert_allclose(rates[4:], after[schedule])
    assert scheduled_rate(20, config) == pytest.approx(2.0 if schedule == "constant" else 0.0)
    cold = replace(config, lr_warmup_steps=0)
    assert scheduled_rate(0, cold) == 2.0, "without warm-up the first rate is the peak"


@pytest.mark.parametrize(
    ("schedule", "options", "theirs"),
    [
        ("linear", {}, {}),
        ("cosine", {}, {}),
        ("cosine_with_restarts", {"lr_num_cycles": 3}, {"num_cycles": 3}),
        ("polynomial", {}, {}),
        ("polynomial", {"lr_power": 2.5}, {"power": 2.5}),
    ],
)
@pytest.mark.parametrize("warmup", [0, 7])
def test_learning_rates_are_those_of_diffusers_step_by_step(schedule, options, theirs, warmup):
    """But for the warm-up: its step n has the rate of diffusers' step n + 1, so the first one is not lost."""
    config = TrainingConfig(
        learning_rate=3e-4, lr_scheduler=schedule, lr_warmup_steps=warmup, max_train_steps=50, **options
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=50, **theirs)
    rates = []
    for _ in range(51):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = rates[1 : warmup + 1] + rates[warmup:]  # of their step `warmup`, the peak, there are two
    np.testing.assert_allclose([scheduled_rate(n, config) for n in range(warmup)], expected[:warmup], rtol=1e-14)
    found = [scheduled_rate(n, config) for n in range(warmup, 51)]
    np.testing.assert_allclose(found, rates[warmup:], rtol=1e-12, atol=1e-20)


def test_options_of_a_learning_rate_that_is_not_taken_do_not_tell_runs_apart():
    plain = TrainingConfig(lr_scheduler="cosine").fingerprint()
    assert plain == TrainingConfig(lr_scheduler="cosine", lr_num_cycles=3, lr_power=2.0, lr_end=1e-6).fingerprint()
    assert TrainingConfig(lr_scheduler="polynomial", lr_power=2.0).fingerprint()["lr_power"] == 2.0
    with pytest.raises(UserError, match="`lr_end`"):
        TrainingConfig(lr_scheduler="polynomial", learning_rate=1e-8)


def test_ema_is_its_closed_form_and_follows_what_has_no_gradient():
    model = nn.BatchNorm1d(1).double()
    model.bias.requires_grad_(False)
    ema = ExponentialMovingAverage(model, 0.9)
    expected, values = 1.0, [3.0, -2.0, 7.0, 0.5] * 30
    for n, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
            model.bias.fill_(value)
            model.running_mean.fill_(value)
        ema.update(model, n)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.model.weight.item() == pytest.approx(expected, rel=1e-12)
    assert ema.model.bias.item() == ema.model.running_mean.item() == 0.5
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_the_optimizer_comes_back_in_the_memory_layout_of_its_weights():
    """The fused AdamW reads weights and moments in the order of memory: another layout mixes them up silently."""
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 8, 8)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    def fresh():
        model = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        settings = {"learning_rate": 0.1, "adam_beta2": 0.99, "adam_weight_decay": 0.1}
        return model, make_optimizer(model, TrainingConfig(**settings))

    model, optimizer = fresh()
    step(model, optimizer)
    twin, its_optimizer = fresh()
    twin.load_state_dict(model.state_dict())
    saved = {name: value.contiguous().clone() for name, value in optimizer_tensors(optimizer, model).items()}
    entries = ("exp_avg", "exp_avg_sq", "step")
    assert saved.keys() == {f"{name}/{entry}" for name in ("weight", "bias") for entry in entries}
    load_optimizer_tensors(its_optimizer, twin, saved)
    for _ in range(3):
        step(model, optimizer)
        step(twin, its_optimizer)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)


@pytest.mark.parametrize("gradient_lies", ["alike", "otherwise"])
def test_fused_adamw_is_the_plain_one_in_every_layout(gradient_lies):
    """torch's fused step is wrong where a gradient lies otherwise than its weight: it walks through their memory."""
    shapes = ((64, 32, 3, 3), (3, 7, 3, 3), (8, 8, 1, 1), (16, 4), (5,))

    def trained(cls, **options):
        draw = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
        for weight in weights[:2]:
            weight.data = weight.data.to(memory_format=torch.channels_last)
        optimizer = cls(weights, lr=1e-2, weight_decay=0.1, **options)
        for _ in range(5):
            for weight in weights:
                gradient = torch.randn(weight.shape, generator=draw)
                alike = torch.empty_like(weight, requires_grad=False).copy_(gradient)
                weight.grad = alike if gradient_lies == "alike" else gradient
            optimizer.step()
        moments = [optimizer.state[weight][name] for weight in weights for name in ("exp_avg", "exp_avg_sq")]
        assert weights[0].is_contiguous(memory_format=torch.channels_last)
        return [*(weight.detach() for weight in weights), *moments]

    for ours, plain in zip(trained(AdamW, fused=True), trained(torch.optim.AdamW, foreach=False), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("limit", [1e-3, 1.0, 5.0, math.inf])
def test_gradients_are_clipped_as_torch_clips_them(limit):
    def weights():
        draw = torch.Generator().manual_seed(0)
        found = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))]
        for weight in found[:2]:
            weight.grad = torch.randn(weight.shape, generator=draw)
        return found

    ours, plain = weights(), weights()
    assert torch.equal(clip_gradients(ours, limit), nn.utils.clip_grad_norm_(plain, limit))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours[:2], plain[:2], strict=True))
    ours[0].grad[0, 0] = math.nan
    assert clip_gradients(ours, limit).isnan()


def test_weight_decay_shrinks_matrices_and_leaves_biases_and_norms():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = make_optimizer(model, TrainingConfig(learning_rate=0.1, adam_weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    scales = [0.95, 1.0, 1.0, 1.0]  # 1 - rate * decay for the matrix
    for parameter, start, scale in zip(model.parameters(), before, scales, strict=True):
        torch.testing.assert_close(parameter.detach(), start * scale)


def test_muon_steps_along_the_nearest_orthogonal_matrix():
    """Against the singular value decomposition in float64; five iterations leave singular values within 0.7 to 1.2."""
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonalized(matrices) @ vh.mT  # diagonal: the same singular vectors
    values = inner.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inner, torch.diag_embed(values), rtol=0, atol=1e-9)
    assert values.min() > 0.65 and values.max() < 1.25

    kernel = nn.Conv2d(8, 16, 3, bias=False)
    before = kernel.weight.detach().flatten(1).clone()
    optimizer = make_optimizer(kernel, TrainingConfig(optimizer="muon"))
    (group,) = optimizer.param_groups
    assert group["muon"] and group["ratio"] == pytest.approx(0.02 / 1e-4)
    group["lr"] = 0.1
    kernel.weight.grad = torch.randn(kernel.weight.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    lengths = torch.linalg.svdvals(before - kernel.weight.detach().flatten(1)) / 0.1
    assert lengths.min() > 0.65 and lengths.max() < 1.25


def test_old_checkpoints_go_only_after_the_new_one_is_whole(tmp_path, monkeypatch):
    tensors = {name: {"w": torch.arange(4.0)} for name in ("model", "optimizer")}
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, tensors, {}, limit=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"], "newest by number"
    assert all(damage(path) is None for path in checkpoints(tmp_path))

    monkeypatch.setattr("ldm.training.checkpoint.damage", lambda folder: "a bit fell over")
    with pytest.raises(OSError, match="a bit fell over"):
        save_checkpoint(tmp_path, 200, tensors, {}, limit=1)
    monkeypatch.undo()
    assert damage(tmp_path / "checkpoint-10") is None and damage(tmp_path / "checkpoint-100") is None


# A task whose loss is known: mean over the batch of (w - x)^2, the examples being 0, 1, ..., 9.


@dataclass
class Means(Task):
    model: nn.Module = field(default_factory=lambda: Number())
    kind: str = "autoencoder"
    length: int = 10
    fingerprint: dict = field(default_factory=lambda: {"data": "digits"})
    bad_step: int = -1
    batches_seen: list = field(default_factory=list)

    def batches(self, plan):
        for call in plan:
            yield torch.tensor([float(index) for index, _ in call])

    def loss(self, model, batch, random):
        self.batches_seen.append((random.step, sorted(batch.tolist())))
        noise = random.normal("noise", ())
        total = (model(batch) + 0.1 * noise).square().mean()
        return Loss(total * (math.nan if random.step == self.bad_step else 1.0), {"distance": model(batch).mean()})

    def validate(self, model):
        random.random(), np.random.rand(), torch.rand(1)  # must be seen neither by the training nor by the caller
        return {"w": model.w.item()}

    def publish(self, model, folder):
        (folder / "published.json").write_text(json.dumps(model.w.item()))


class Number(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.w - x


def settings(folder, **changes):
    defaults = {"max_train_steps": 6, "train_batch_size": 4, "learning_rate": 0.1, "log_steps": 1, "device": "cpu"}
    return TrainingConfig(output_dir=str(folder), **{**defaults, **changes})


def run(folder, task=None, **changes):
    task = task or Means()
    measures = train(task, settings(folder, **changes), "{}\n", CPU)
    return task, measures


@pytest.mark.parametrize("schedule", ["cosine_with_restarts", "polynomial"])
def test_a_resumed_run_goes_on_with_the_rates_of_an_uninterrupted_one(tmp_path, schedule):
    rates = {"lr_scheduler": schedule, "lr_num_cycles": 2, "lr_power": 2.0, "lr_warmup_steps": 2}
    for name in ("whole", "parts"):
        run(tmp_path / name, max_train_steps=9, checkpointing_steps=4, **rates)
    shutil.rmtree(tmp_path / "parts" / "checkpoint-9")
    run(tmp_path / "parts", max_train_steps=9, checkpointing_steps=4, **rates)
    logged = {name: [entry.get("learning_rate") for entry in metrics(tmp_path / name)] for name in ("whole", "parts")}
    config = settings(tmp_path, max_train_steps=9, **rates)
    assert [rate for rate in logged["whole"] if rate] == [scheduled_rate(step, config) for step in range(9)]
    assert logged["parts"] == logged["whole"] and losses(tmp_path / "parts") == losses(tmp_path / "whole")


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [(entry["step"], entry["loss"]) for entry in metrics(folder) if "loss" in entry]


def test_one_step_is_adam_by_hand(tmp_path):
    task, _ = run(tmp_path, max_train_steps=1, adam_weight_decay=0.0, ema_decay=0.0)
    assert task.model.w.item() == pytest.approx(0.1, rel=1e-5), "Adam's first step has the size of the rate"
    (entry,) = [entry for entry in metrics(tmp_path) if "loss" in entry]
    assert entry["learning_rate"] == 0.1 and entry["step"] == 1
    assert entry["distance"] == pytest.approx(-np.mean(task.batches_seen[0][1]), rel=1e-5)


def test_accumulation_takes_the_same_step(tmp_path):
    one, _ = run(tmp_path / "one", max_train_steps=8)
    four, _ = run(tmp_path / "four", max_train_steps=8, gradient_accumulation_steps=4)
    assert len(four.batches_seen) == 4 * len(one.batches_seen)
    assert four.model.w.item() == pytest.approx(one.model.w.item(), rel=1e-5)
    np.testing.assert_allclose(losses(tmp_path / "four"), losses(tmp_path / "one"), rtol=1e-5)


def test_the_callers_random_states_stay_and_do_not_matter(tmp_path):
    weights = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        task, _ = run(tmp_path / str(seed), validation_steps=2)
        weights.append(task.model.w.item())
        assert random.getstate() == before[0]
        assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
        assert torch.equal(torch.get_rng_state(), before[2])
    assert weights[0] == weights[1]


def test_a_loss_that_is_not_finite_stops_before_the_weights(tmp_path):
    run(tmp_path / "good", max_train_steps=3)
    task = Means(bad_step=3)
    message = r"step 4: not finite: loss, gradient; training examples of the batch: \d, \d, \d, \d; no weight"
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path / "bad", task, checkpointing_steps=3)
    good = load_file(tmp_path / "good" / "checkpoint-3" / "model.safetensors")
    assert task.model.w.item() == good["w"].item(), "the weights are those of the last good step"
    assert [path.name for path in checkpoints(tmp_path / "bad")] == ["checkpoint-3"]
    run(tmp_path / "bad", Means())  # mended, it goes on
    run(tmp_path / "good")
    assert load_file(tmp_path / "bad" / "checkpoint-6" / "model.safetensors") == load_file(
        tmp_path / "good" / "checkpoint-6" / "model.safetensors"
    )


def test_trainings_of_one_process_may_differ_in_precision(tmp_path):
    weights = [run(tmp_path / name, mixed_precision=name)[0].model.w.item() for name in ("no", "bf16")]
    assert weights[0] == pytest.approx(weights[1], rel=0.05)


def test_each_step_is_logged_once_however_often_the_run_is_started(tmp_path):
    run(tmp_path, validation_steps=2, checkpointing_steps=3, max_train_steps=5)
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')  # after the last checkpoint, and half a line
    for steps in (8, 8, 8):
        _, measures = run(tmp_path, validation_steps=2, max_train_steps=steps)
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]
    validations = [entry for entry in metrics(tmp_path) if "validation" in entry]
    assert [entry["step"] for entry in validations] == [2, 4, 5, 6, 8]
    assert measures == validations[-1]["validation"], "a finished run tells what it found"
    run(tmp_path / "other", max_train_steps=8)
    assert losses(tmp_path) == losses(tmp_path / "other")


def test_numbers_that_json_has_not_become_null(tmp_path):
    task = Means()
    task.validate = lambda model: {"empty": math.nan, "rows": [1.0, {"x": math.inf}]}
    run(tmp_path, task)

    def refuse(constant):
        raise AssertionError(constant)

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation"] == {"empty": None, "rows": [1.0, {"x": None}]}


def test_two_runs_cannot_share_a_folder(tmp_path):
    claimed = RunFolder.claim(tmp_path / "run", "autoencoder", "{}", {"data": "digits"})
    with pytest.raises(UserError, match="another process is training there"):
        run(tmp_path / "run")
    claimed.close()
    run(tmp_path / "run")


def test_a_forked_worker_that_outlives_a_killed_run_does_not_keep_its_folder(tmp_path):
    import os
    import time

    claimed = RunFolder.claim(tmp_path / "run", "autoencoder", "{}", {"data": "digits"})
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.2)
        claimed._lock.close()  # what the kernel does when the parent is killed
        RunFolder.claim(tmp_path / "run", "autoencoder", "{}", {"data": "digits"}).close()
    finally:
        os.kill(worker, 9)
        os.waitpid(worker, 0)


def test_a_run_of_other_settings_is_refused_by_name(tmp_path):
    run(tmp_path, Means(fingerprint={"data": "digits", "unet": {"width": 8, "depth": 1}}))
    with pytest.raises(UserError, match=r"other settings \(unet\.width was 8, is 16\)"):
        run(tmp_path, Means(fingerprint={"data": "digits", "unet": {"width": 16, "depth": 1}}))
    with pytest.raises(UserError, match="holds a run of `train autoencoder`, not of `train diffusion`"):
        run(tmp_path, Means(kind="diffusion"))


def test_what_a_killed_start_leaves_is_taken_over(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.tmp-a1b2c3d4").write_text("{")
    (tmp_path / ".unet.old-77").mkdir()
    with pytest.raises(UserError, match="holds something else"):
        run(tmp_path)
    (tmp_path / ".unet.old-77").rmdir()
    run(tmp_path)
    (tmp_path / ".unet.old-77").mkdir()
    run(tmp_path)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_a_checkpoint_may_be_named_if_it_is_whole(tmp_path):
    run(tmp_path, checkpointing_steps=2, checkpoints_total_limit=9)
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"x")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for name, problem in {
        "checkpoint-3": "no such checkpoint",
        "../x": "no such checkpoint",
        "checkpoint-4": "damaged .model.safetensors has 1 bytes",
    }.items():
        with pytest.raises(UserError, match=problem):
            run(tmp_path, max_train_steps=7, resume_from_checkpoint=name)
        with pytest.raises(UserError, match="no such checkpoint"):
            run(tmp_path / "new", resume_from_checkpoint=name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before, "refused before anything was written"
    task, _ = run(tmp_path, max_train_steps=7, resume_from_checkpoint="checkpoint-2")
    assert [step for step, _ in task.batches_seen] == [2, 3, 4, 5, 6]


PARTS = ("model", "ema", "optimizer")


def spoil_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 16
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", [*(f"{part}.safetensors" for part in PARTS), "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["bit", "short", "gone"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, file, harm):
    run(tmp_path, checkpointing_steps=2, checkpoints_total_limit=9)
    path = tmp_path / "checkpoint-6" / file
    if harm == "bit":
        spoil_bit(path)
    elif harm == "short":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    task, _ = run(tmp_path)
    assert any("checkpoint-6 is damaged" in record.message for record in caplog.records)
    assert [step for step, _ in task.batches_seen] == [4, 5]
    run(tmp_path / "other")
    assert losses(tmp_path) == losses(tmp_path / "other")
    assert damage(tmp_path / "checkpoint-6") is None, "and written again"
