"""What a training would cost, found by building it and taking a few real steps in memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.training.config import TrainingConfig
from ldm.training.guards import preserve_random_state
from ldm.training.loop import take_step
from ldm.training.processes import make_accelerator, shard_of
from ldm.training.randomness import BatchPlan
from ldm.training.state import TrainingState
from ldm.training.task import Task

STEPS = 10  # that are timed
_WARM_UP = 2  # steps before: of the first the memory is measured, of the second the operations


@dataclass(frozen=True)
class DryRun:
    """The figures; memory and checkpoint in bytes, of one process."""

    images: int
    parameters: dict[str, int]  # by part of the model; those of an adversary as well
    memory: dict[str, int]  # weights, gradients, optimizer, averages, activations
    peak: int | None  # the most that a GPU held, temporary tensors included; None elsewhere
    flops: int  # of a step: products and convolutions, forward and backward, this process's part
    step_seconds: float
    steps: int  # that are left
    checkpoint: int

    @property
    def seconds(self) -> float:
        """Of the steps that are left, without validation and saving."""
        return self.steps * self.step_seconds


def dry_run(task: Task, config: TrainingConfig, device: torch.device) -> DryRun:
    """Take a few steps of the training from where its run folder stands, and write nothing."""
    config = dataclasses.replace(config, compile="none")  # compiled operations are not counted
    accelerator = make_accelerator(config, device)
    shard = shard_of(config, accelerator)
    encodes = task.skip_cache()
    with preserve_random_state():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        state = TrainingState(task, config, accelerator, shard, None)
        first, count = state.step, _WARM_UP + STEPS
        batches = iter(task.batches(BatchPlan(task.length, config.seed, shard, first, first + count)))
        if encodes:  # now, for a cache is made once, before the steps
            batches = iter(list(batches))
        with saved_bytes(state.model) as saved:
            take_step(state, batches)
        with FlopCounterMode(display=False) as counter:
            take_step(state, batches)
        _synchronize(device)
        since = time.monotonic()
        for _ in range(STEPS):
            take_step(state, batches)
        _synchronize(device)
        seconds = (time.monotonic() - since) / STEPS
    sizes = {name: sum(_bytes(value) for value in values.values()) for name, values in state.tensors().items()}
    return DryRun(
        images=task.length,
        parameters=_parameters(task, state.models),
        memory={
            "weights": sum(_bytes(value) for model in state.models for value in model.state_dict().values()),
            "gradients": sum(_bytes(p) for model in state.models for p in model.parameters() if p.requires_grad),
            "optimizer": sum(size for name, size in sizes.items() if "optimizer" in name),
            "averages": sizes.get("ema", 0) + sizes.get("averages", 0),
            "activations": saved["bytes"],
        },
        peak=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        flops=counter.get_total_flops(),
        step_seconds=seconds,
        steps=max(0, config.max_train_steps - first),
        checkpoint=sum(sizes.values()),
    )


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count what the first forward call saves for its backward pass: each storage once, and no weight of `model`."""
    saved, forward = {"bytes": 0}, [True]
    counted = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if forward and storage.data_ptr() not in counted:
            counted.add(storage.data_ptr())
            saved["bytes"] += storage.nbytes()
        return value

    def unpack(value: Tensor) -> Tensor:
        forward.clear()  # the backward pass has begun: from now on memory is used again
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield saved


def _parameters(task: Task, models: list[nn.Module]) -> dict[str, int]:
    parts = {name: child for name, child in models[0].named_children() if task.kind == "diffusion"}
    parts = parts or {task.kind: models[0]}
    if task.adversary is not None:
        parts[task.adversary.name] = models[1]
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return {name: count for name, count in counts.items() if count}


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
