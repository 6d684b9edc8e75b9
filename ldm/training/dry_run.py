"""What a training would cost, found by building it and taking a few real steps in memory: `--dry-run`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.training.config import TrainingConfig
from ldm.training.guards import global_random_state_kept
from ldm.training.loop import _Training
from ldm.training.processes import make_accelerator, shard_of
from ldm.training.randomness import BatchPlan
from ldm.training.task import Task

STEPS = 10  # that are timed
_BEFORE = 2  # that warm up: of the first the memory is measured, of the second the operations


@dataclass(frozen=True)
class DryRun:
    """The figures; memory and checkpoint in bytes, of one process."""

    images: int
    parameters: dict[str, int]  # by part of the model; those of an opponent as well
    memory: dict[str, int]  # weights, gradients, optimizer, averages, activations
    peak: int | None  # what a GPU held at most, with all that comes and goes; None elsewhere
    flops: int  # of a step: products and convolutions, forward and backward, this process's share
    step_seconds: float
    steps: int  # that are left
    checkpoint: int

    @property
    def seconds(self) -> float:
        """Of the steps that are left, without validation and saving."""
        return self.steps * self.step_seconds


def rehearse(task: Task, config: TrainingConfig, device: torch.device) -> DryRun:
    """Take a few steps of the training from where its run folder stands, and write nothing."""
    config = dataclasses.replace(config, compile="none")  # what is compiled is not counted
    accelerator = make_accelerator(config, device)
    share = shard_of(config, accelerator)
    source: Any = getattr(task, "source", task)
    if cached := hasattr(source, "write_nothing"):
        source.write_nothing()
    with global_random_state_kept():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        training = _Training(task, config, accelerator, share, None)
        first, count = training.step, _BEFORE + STEPS
        plan = BatchPlan(task.length, config.seed, share, first, first + count)
        batches = iter(task.batches(plan))
        if cached and source.online:  # what a cache will have, once
            batches = iter(list(islice(batches, len(plan))))
        with saved_bytes(training.model) as saved:
            training.advance(batches)
        counter = FlopCounterMode(display=False)
        with counter:
            training.advance(batches)
        _wait(device)
        since = time.monotonic()
        for _ in range(STEPS):
            training.advance(batches)
        _wait(device)
        seconds = (time.monotonic() - since) / STEPS
    players = [training.model, *([training.second.model] if training.second is not None else [])]
    tensors = training.tensors()
    sizes = {name: sum(_bytes(value) for value in values.values()) for name, values in tensors.items()}
    return DryRun(
        images=task.length,
        parameters=_parts(task, players),
        memory={
            "weights": sum(_bytes(value) for player in players for value in player.state_dict().values()),
            "gradients": sum(_bytes(p) for player in players for p in player.parameters() if p.requires_grad),
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
    """Count what the first forward call keeps for its backward pass: each storage once, and no weight of `model`."""
    found, looking = {"bytes": 0}, [True]
    seen = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if looking and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            found["bytes"] += storage.nbytes()
        return value

    def unpack(value: Tensor) -> Tensor:
        looking.clear()  # the backward pass has begun: from now on memory is used again
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield found


def _parts(task: Any, players: list[nn.Module]) -> dict[str, int]:
    model = players[0]
    names = {name: child for name, child in model.named_children() if task.kind == "diffusion"} or {task.kind: model}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in names.items()}
    if len(players) > 1:
        counts[task.adversary.name] = sum(p.numel() for p in players[1].parameters())
    return {name: count for name, count in counts.items() if count}


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
