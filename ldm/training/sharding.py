"""Weights, gradients, optimiser and average in shards over the processes, each process with a part of every tensor.

For networks that outgrow a GPU: torch's FSDP2 (Zhao et al. 2023, arXiv:2304.11277), by which the layers of a U-Net
are whole only while they are computed. What is saved and measured is put together first, so that files are the
same as without, and either kind of run goes on from them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ldm.models.attention import SpatialTransformer
from ldm.models.blocks import ResnetBlock
from ldm.models.encoder import Encoder
from ldm.runtime.errors import UserError
from ldm.training.config import TrainingConfig
from ldm.training.task import Task

FSDP_VARIABLE = "ACCELERATE_USE_FSDP"  # `accelerate launch --use_fsdp` sets it for its processes
_KINDS = ("diffusion", "classifier", "prior")


def fsdp_requested(config: TrainingConfig) -> bool:
    """Whether `fsdp` is set, here or where accelerate was configured."""
    return config.fsdp or os.environ.get(FSDP_VARIABLE, "").lower() in ("1", "true", "yes")


def check_shards(task: Task, config: TrainingConfig) -> None:
    """`UserError` for what cannot be done in shards."""
    if not fsdp_requested(config):
        return
    if task.kind not in _KINDS:
        raise UserError(f"for `train {'|'.join(_KINDS)}`, not for `train {task.kind}`; leave it out", setting="fsdp")
    problems = {
        "`optimizer` muon works on whole matrices": config.optimizer == "muon",
        "`compile`": config.compile != "none",
        "`mixed_precision` fp16": config.mixed_precision == "fp16",
        "`ema_lengths`": bool(task.averages.ema_lengths),
    }
    if conflicts := [name for name, given in problems.items() if given]:
        raise UserError(f"not together with {conflicts[0]}", remedy="leave one of them out", setting="fsdp")


class Shards:
    """The shards of a training; without `fsdp`, or for one process alone, all stays as it is."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.active = fsdp_requested(config) and accelerator.num_processes > 1
        self._whole: nn.Module | None = None

    def split(self, model: nn.Module, *others: nn.Module) -> None:
        """Keep this process's part of the weights of these models, in place."""
        if not self.active:
            return
        self._whole = copy.deepcopy(model).cpu()
        mesh = init_device_mesh(self.accelerator.device.type, (self.accelerator.num_processes,))
        for network in (model, *others):
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # shards are of rows
            for part in network.modules():
                if isinstance(part, Encoder):
                    part.one_time_product = False  # it would read the weights of blocks that are in shards
            for part in [part for part in network.modules() if isinstance(part, ResnetBlock | SpatialTransformer)]:
                fully_shard(part, mesh=mesh)
            fully_shard(network, mesh=mesh)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """What is called and what is stepped in training."""
        if self.active:
            return model, self.accelerator.prepare_optimizer(optimizer)
        return self.accelerator.prepare(model, optimizer)

    def whole(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file put together, one after another, on the first process; all must call it."""
        if not self.active:
            return {file: dict(values) for file, values in tensors.items()}
        whole: dict[str, dict[str, Tensor]] = {file: {} for file in tensors}
        for file, values in tensors.items():
            for name, value in values.items():
                joined = full_tensor(value)
                if self.accelerator.is_main_process:
                    whole[file][name] = joined.detach().cpu()
        return whole

    def gathered(self, model: nn.Module) -> nn.Module:
        """A whole copy of the model, to measure and publish; all must call it."""
        if self._whole is None:
            return model
        self._whole.cpu().load_state_dict({name: full_tensor(v).cpu() for name, v in model.state_dict().items()})
        return self._whole.to(self.accelerator.device)


def full_tensor(value: Tensor) -> Tensor:
    """A tensor in shards put together, which all processes must call; another one as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def distribute_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor that all have, where `like` is in shards; else the tensor."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
