"""The processes of a training: they take the same steps, stop at the same one, and start from the same weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from ldm.runtime.errors import LostProcessError, UserError
from ldm.training.config import TrainingConfig
from ldm.training.randomness import BatchShard
from ldm.training.sharding import ASKED


def make_accelerator(config: TrainingConfig, device: torch.device) -> Accelerator:
    """Accelerate's device, precision and process handling, with `auto` precision resolved."""
    precision: str = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    if precision == "fp16" and device.type == "cpu":
        raise UserError("`mixed_precision` fp16 does nothing on a CPU", remedy="use no or bf16")
    if not torch.distributed.is_initialized():  # another training of this process may have had another precision
        AcceleratorState._reset_state(reset_partial_state=True)
    asked = os.environ.pop(ASKED, None)  # of shards, which are ours
    try:
        return Accelerator(cpu=device.type == "cpu", mixed_precision=precision, step_scheduler_with_optimizer=False)
    finally:
        os.environ.update({ASKED: asked} if asked is not None else {})


def shard_of(config: TrainingConfig, accelerator: Accelerator) -> BatchShard:
    """This process's part of each batch; `UserError` where it cannot be shared equally."""
    ranks = accelerator.process_index, accelerator.num_processes
    try:
        return BatchShard(config.train_batch_size, config.gradient_accumulation_steps, *ranks)
    except ValueError as error:
        raise UserError(f"{error}", setting="train_batch_size") from None


def on_any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether a flag is set on any process: what one alone did would leave the others waiting for it."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)


@contextmanager
def others_alive(accelerator: Accelerator) -> Iterator[None]:
    """What the transport says when another process is gone, as `LostProcessError`."""
    try:
        yield
    except RuntimeError as error:
        transport = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if accelerator.num_processes == 1 or not transport:
            raise
        raise LostProcessError(
            "another process of this training has ended, or cannot be reached; see its own message, then start again: "
            "the same command goes on from the last checkpoint"
        ) from error


def same_everywhere(checkpoint: str, accelerator: Accelerator) -> None:
    """`UserError` unless all processes go on from the same checkpoint, as they must."""
    if accelerator.num_processes == 1:
        return
    found: list[str | None] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(found, checkpoint)
    if len(set(found)) > 1:
        listed = ", ".join(f"{name} on process {rank}" for rank, name in enumerate(found))
        raise UserError(
            f"the checkpoint is {listed}", remedy="it must be a folder that all machines share", setting="output_dir"
        )


def means(terms: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Named scalars as numbers, means over the processes."""
    values = torch.stack([value.detach().float() for value in terms.values()])
    return dict(zip(terms, accelerator.reduce(values, "mean").tolist(), strict=True))
