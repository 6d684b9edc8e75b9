"""The processes of a training: they take the same steps, stop at the same one, and start from the same weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ldm.runtime.distributed import Processes
from ldm.runtime.errors import LostProcessError, UserError
from ldm.training.config import TrainingConfig
from ldm.training.randomness import BatchShard
from ldm.training.sharding import FSDP_VARIABLE


def make_accelerator(config: TrainingConfig, device: torch.device) -> Accelerator:
    """Accelerate's device, precision and process handling, with `auto` precision resolved."""
    precision: str = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    if precision == "fp16" and device.type == "cpu":
        raise UserError("`mixed_precision` fp16 does nothing on a CPU", remedy="use no or bf16")
    if not torch.distributed.is_initialized():  # another training of this process may have had another precision
        AcceleratorState._reset_state(reset_partial_state=True)
    fsdp = os.environ.pop(FSDP_VARIABLE, None)  # the shards are ours, not accelerate's
    try:
        return Accelerator(cpu=device.type == "cpu", mixed_precision=precision, step_scheduler_with_optimizer=False)
    finally:
        os.environ.update({FSDP_VARIABLE: fsdp} if fsdp is not None else {})


def shard_of(config: TrainingConfig, accelerator: Accelerator) -> BatchShard:
    """This process's part of each batch; `UserError` where it cannot be split equally."""
    rank, count = accelerator.process_index, accelerator.num_processes
    try:
        return BatchShard(config.train_batch_size, config.gradient_accumulation_steps, rank, count)
    except ValueError as error:
        raise UserError(f"{error}", setting="train_batch_size") from None


@contextmanager
def report_lost_process(processes: Processes) -> Iterator[None]:
    """The transport's error when another process is gone, as `LostProcessError`."""
    try:
        yield
    except RuntimeError as error:
        transport = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if processes.count == 1 or not transport:
            raise
        problem = "another process of this training has ended, or cannot be reached; see its own message"
        raise LostProcessError(f"{problem}; the same command goes on from the last checkpoint") from error


def check_same_checkpoint(checkpoint: str, processes: Processes) -> None:
    """`UserError` unless all processes resume from the same checkpoint, as they must."""
    checkpoints = processes.all_gather(checkpoint)
    if len(set(checkpoints)) > 1:
        listed = ", ".join(f"{name} on process {rank}" for rank, name in enumerate(checkpoints))
        raise UserError(f"all machines must share the folder, but the checkpoint is {listed}", setting="output_dir")
