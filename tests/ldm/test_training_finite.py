"""A loss or gradient that is not finite reaches no weight; the run stops and says where, or leaves the step out."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

FILES = ("model", "ema", "optimizer", "opponent", "opponent_optimizer")
ADVERSARIAL = [
    "--bottleneck", "vq", "--num-codes", 16, "--revive-after", 2, "--codebook", "ema",
    "--adversarial-weight", 0.5, "--discriminator-start", 0, "--discriminator-warmup", 0, "--discriminator-width", 4,
    "--discriminator-layers", 2, "--spectral-norm", "--train-batch-size", 8,
    "--checkpointing-steps", 1, "--checkpoints-total-limit", 99,
]  # fmt: skip


@pytest.fixture
def images(tmp_path):
    for number in range(44):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


@pytest.fixture
def poison(monkeypatch):
    """`poison(*steps)`: from now on the first image of these batches, counted from 1, is not a number."""
    from ldm.training.tasks import images

    real = images.image_batches

    def spoil(*steps):
        def batches(data, plan, workers):
            for step, batch in enumerate(real(data, plan, workers), plan.start + 1):
                if step in steps:
                    batch.images[0] = math.nan
                yield batch

        monkeypatch.setattr(images, "image_batches", batches)

    return spoil


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def bits(run, step):
    return {
        f"{file}/{name}": value.numpy().tobytes()
        for file in FILES
        for name, value in load_file(run / f"checkpoint-{step}" / f"{file}.safetensors").items()
    }


def test_such_a_step_stops_or_is_left_out_and_counted(models, ldm, images, poison, tmp_path, caplog):
    def train(folder, *more):
        return ldm(*models.command("autoencoder", tmp_path / folder, "--data", images, *ADVERSARIAL, *more, steps=7))

    assert train("clean").code == 0
    poison(4, 5)

    stopped = train("run")
    assert stopped.code == 1
    assert "step 4: not finite: loss, " in stopped.err and "discriminator_loss" in stopped.err
    assert "no weight was changed" in stopped.err and "--skip-non-finite N" in stopped.err
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (1, 2, 3)
    ], "what was saved before stays, and nothing after"
    last = lines(tmp_path / "run")[-1]
    assert last["step"] == 4 and len(last["examples"]) == 8 and last["loss"] is None
    for index, file in zip(last["examples"], last["files"], strict=True):
        assert (images / file).is_file() and f"{index} ({file})" in stopped.err
    assert bits(tmp_path / "run", 3) == bits(tmp_path / "clean", 3)

    again = train("run", "--skip-non-finite", 1)  # one more in a row than is allowed
    assert again.code == 1 and "left out (1 in a row, 1 in all)" in caplog.text
    assert "step 5: not finite" in again.err and "2 steps in a row, the limit is --skip-non-finite 1" in again.err
    once_more = train("run", "--skip-non-finite", 1)  # goes on from checkpoint 4, whose count it knows
    assert once_more.code == 1 and "2 steps in a row" in once_more.err

    assert train("run", "--skip-non-finite", 2).code == 0
    before, *after = (bits(tmp_path / "run", step) for step in (3, 4, 5))
    for found in after:  # the codebook that moves by itself and the spectral norms' vectors among them
        assert [name for name in before if before[name] != found[name]] == []
    assert bits(tmp_path / "run", 6) != before
    assert all(math.isfinite(float(value.double().sum())) for value in _tensors(tmp_path / "run", 7))
    steps = [entry for entry in lines(tmp_path / "run") if "gradient_norm" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 8)), "each step once"
    assert [entry.get("steps_left_out") for entry in steps] == [None, None, None, 1, 2, 2, 2]
    assert [entry["step"] for entry in steps if "not_finite" in entry] == [4, 5]

    assert train("other", "--skip-non-finite", 2).code == 0
    assert bits(tmp_path / "other", 7) == bits(tmp_path / "run", 7), "as if it had never been stopped"


def _tensors(run, step):
    return [value for file in FILES for value in load_file(run / f"checkpoint-{step}" / f"{file}.safetensors").values()]


def test_a_skipped_step_costs_nothing_where_there_is_none(models, ldm, tmp_path):
    for folder, limit in (("a", 0), ("b", 3)):
        command = models.command("autoencoder", tmp_path / folder, *ADVERSARIAL, "--skip-non-finite", limit, steps=3)
        assert ldm(*command).code == 0
    assert bits(tmp_path / "a", 3) == bits(tmp_path / "b", 3)
    assert not any("steps_left_out" in entry for entry in lines(tmp_path / "b"))
