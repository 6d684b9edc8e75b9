"""Memory that does not suffice, here or in a loader: one line with what to lower; sampling halves its batch."""

import logging
import os
import signal

import pytest
import torch

from ldm.data.shapes import ShapesData
from ldm.runtime.exhaustion import ExhaustedError, exhausted
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.pipeline import Pipeline
from ldm.training import loop

CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)
ERRORS = {
    "python": MemoryError(),
    "cpu": RuntimeError(CPU),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
}


def test_what_is_used_up_is_known_by_the_errors_of_the_allocators():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**56, dtype=torch.uint8)
    for error in (*ERRORS.values(), refused.value, MemoryError("Caught MemoryError in DataLoader worker process 0.")):
        assert exhausted(error) == "out of memory", error
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("DefaultCPUAllocator"),
        OSError(),
    ):
        assert exhausted(error) == ""


@pytest.mark.parametrize("kind", ERRORS)
def test_sampling_halves_its_batch_once_and_draws_the_same_images(models, monkeypatch, caplog, kind):
    pipeline, sampling = Pipeline.load(models.text), SamplingConfig(num_inference_steps=4, sampler="ddpm")
    requests = [Request(prompt="a red circle")] * 7

    def drawn():
        return [batch.clone() for batch in pipeline.generate(requests, sampling, seed=3, batch_size=5)]

    expected, evaluations = drawn(), pipeline.evaluations
    real, sizes = pipeline.sample_batch, []

    def limited(batch, *arguments, most=3):
        sizes.append(len(batch))
        if len(batch) > most:
            pipeline.evaluations += 1000
            raise ERRORS[kind]
        return real(batch, *arguments)

    monkeypatch.setattr(pipeline, "sample_batch", limited)
    with caplog.at_level(logging.WARNING, "ldm"):
        images = drawn()
    assert sizes == [5, 3, 2, 2] and pipeline.evaluations == evaluations
    assert [batch.shape for batch in images] == [batch.shape for batch in expected]
    for a, b in zip(images, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert [r.message for r in caplog.records] == ["out of memory with 5 images at once: going on with 3"]
    monkeypatch.setattr(pipeline, "sample_batch", lambda *arguments: limited(*arguments, most=1))
    with pytest.raises(ExhaustedError, match="out of memory; lower `batch_size`"):
        drawn()


@pytest.mark.parametrize("kind", ERRORS)
def test_training_says_what_to_lower(models, ldm, tmp_path, monkeypatch, kind):
    def fail(*_):
        raise ERRORS[kind]

    monkeypatch.setattr(loop, "_forward_backward", fail)
    found = ldm(*models.command("classifier", tmp_path / "run"))
    assert found.code == 1 and found.err.count("ldm: ") == 1 and "Traceback" not in found.err
    line = found.err.splitlines()[-1]
    assert line.startswith("ldm: out of memory; lower --train-batch-size") and "--gradient-checkpointing" in line


def test_sampling_from_the_command_line_says_what_to_lower(models, ldm, tmp_path, monkeypatch):
    monkeypatch.setattr(Pipeline, "sample_batch", lambda *_: torch.empty(2**56, dtype=torch.uint8))
    found = ldm(
        "sample", models.text, "--prompt", "x", "--num-images", 2, "--device", "cpu", "--output-dir", tmp_path / "o"
    )
    assert found.code == 1 and "Traceback" not in found.err
    assert found.err.splitlines()[-1].startswith("ldm: out of memory; lower --batch-size")


def test_a_killed_loading_process_is_one_line(models, ldm, tmp_path, monkeypatch):
    real = ShapesData.__getitem__

    def killed(self, key):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, key)

    monkeypatch.setattr(ShapesData, "__getitem__", killed)
    found = ldm(*models.command("autoencoder", tmp_path / "run", "--dataloader-num-workers", 1, steps=2))
    assert found.code == 1 and "Traceback" not in found.err
    line = found.err.splitlines()[-1]
    assert line.startswith("ldm: a process that loads images was "), line
    assert "killed by signal Killed" in line or "ended from outside" in line, "as the main process noticed it"
    assert "--dataloader-num-workers" in line
