"""What a training needs of the machine: room on the disk before it begins, and the remedies where memory is short."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ldm.training.checkpoint import checkpoints
from ldm.training.config import TrainingConfig
from ldm.training.task import Task

WITH_LESS_MEMORY = (
    "lower `train_batch_size`, or with the same result raise `gradient_accumulation_steps` or give "
    "`gradient_checkpointing`; for processes that load images lower `dataloader_num_workers`; what was saved is whole, "
    "and the same command goes on"
)


def bytes_to_write(task: Task, config: TrainingConfig) -> int:
    """About what the rest of a run writes: one checkpoint more than are kept, the model, and the snapshots."""

    def size(model: nn.Module, moments: int) -> int:
        values = [*model.state_dict().values()]
        learning = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        return sum(value.numel() * value.element_size() for value in values) + moments * learning

    copies, averages = config.ema_decay > 0, task.averages
    weights = size(task.model, 0)
    one_checkpoint = size(task.model, 2) + weights * (copies + len(averages.ema_lengths))
    one_checkpoint += size(task.adversary.model, 2) if task.adversary is not None else 0
    run = Path(config.output_dir)
    steps = [int(folder.name.rpartition("-")[2]) for folder in checkpoints(run)] if run.is_dir() else []
    if steps and steps[-1] >= config.max_train_steps:  # nothing is left to do
        return 0
    there, left = len(steps), -(-(config.max_train_steps - (steps[-1] if steps else 0)) // config.checkpointing_steps)
    snapshots = 0
    if averages.ema_lengths and averages.ema_snapshot_steps:
        half = 2 if averages.ema_snapshot_precision == "float16" else 1
        snapshots = (
            -(-config.max_train_steps // averages.ema_snapshot_steps) * len(averages.ema_lengths) * weights // half
        )
    written = min(left, max(1, config.checkpoints_total_limit + 1 - there))
    return one_checkpoint * written + snapshots + (0 if there else weights)
