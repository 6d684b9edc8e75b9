"""The settings of the training loop and of its averages, the same for every training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ldm.runtime.errors import LARGEST, LARGEST_BATCH, LARGEST_SEED, MOST_WORKERS, TINY, UserError, at_least, in_range

# fmt: off
_POSITIVE = {  # the largest value; all are above 0
    "max_train_steps": LARGEST, "train_batch_size": LARGEST_BATCH, "gradient_accumulation_steps": LARGEST_BATCH,
    "learning_rate": 1e3, "muon_learning_rate": 1e3, "adam_epsilon": 1.0, "lr_reference_steps": LARGEST,
    "lr_num_cycles": LARGEST, "lr_power": 100, "checkpointing_steps": LARGEST, "checkpoints_total_limit": LARGEST,
    "log_steps": LARGEST, "max_parameters": 2**48,
}
_NOT_NEGATIVE = {
    "lr_warmup_steps": LARGEST, "lr_end": 1e3, "adam_weight_decay": 1e3, "max_grad_norm": 1e12,
    "validation_steps": LARGEST, "skip_non_finite": LARGEST, "dataloader_num_workers": MOST_WORKERS,
    "train_seconds": 1e9,
}
_FREE = (  # what a resumed run may change: the result does not depend on it
    "output_dir", "device", "train_seconds", "dry_run", "checkpointing_steps", "checkpoints_total_limit",
    "validation_steps", "log_steps", "dataloader_num_workers", "resume_from_checkpoint", "gradient_checkpointing",
    "report_to", "tracker_project_name", "skip_non_finite", "fsdp", "max_parameters",
)
# fmt: on
_ENDLESS = ("constant", "inverse_sqrt")  # learning rates that do not depend on the last step
_RATE_OPTIONS = {  # of one learning rate each
    "lr_reference_steps": "inverse_sqrt", "lr_num_cycles": "cosine_with_restarts", "lr_power": "polynomial",
    "lr_end": "polynomial",
}  # fmt: skip
_SNAPSHOTS = 50  # by which other lengths are right to a thousandth, near those that were followed
LONGEST_AVERAGE = 12**-0.5  # of a uniform profile, gamma = 0


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the loop, the same for every training."""

    output_dir: str = ""
    """Run folder: new, empty, or an earlier run of the same command, which is then resumed. Unset: that of the newest
    run of the very same command in runs/, else runs/KIND-1 or the next number that is free."""
    device: str = "auto"
    """auto (the GPU where there is one), cuda, mps or cpu."""
    seed: int = 0
    """All randomness of the training follows from it."""
    max_train_steps: int = 1000
    """Optimiser steps in all."""
    train_seconds: float = 0
    """Stop, save and publish after so many seconds in training steps, counted over all parts of a resumed run, if
    `max_train_steps` is not reached before; 0: no limit. Only for the learning rates constant and inverse_sqrt: the
    others end at a step."""
    train_batch_size: int = 64
    """Images an optimiser step, over all processes and accumulation steps."""
    gradient_accumulation_steps: int = 1
    """Forward calls that share one optimiser step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalised momentum for kernels and matrices, AdamW for all else; fewer steps for small models."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon's kernels and matrices; follows the same schedule."""
    lr_scheduler: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"] = (
        "constant"
    )
    """Learning rate after the warm-up, as those of diffusers: linear and cosine end at 0, polynomial at `lr_end`;
    cosine_with_restarts begins anew at the peak. inverse_sqrt never ends (Karras et al. 2024)."""
    lr_reference_steps: int = 1000
    """Of inverse_sqrt: the rate is the peak divided by sqrt(step / this) from this step on."""
    lr_num_cycles: int = 1
    """Of cosine_with_restarts: how often it falls from the peak to 0."""
    lr_power: float = 1.0
    """Of polynomial: the rate falls as (the share of steps that are left) to this power."""
    lr_end: float = 1e-7
    """Of polynomial: the rate at the end, below the peak."""
    lr_warmup_steps: int = 0
    """Steps of linear warm-up: the first step has the rate peak / steps (not 0 as in diffusers), the last the peak."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are the published ones; 0 publishes the last weights."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it, float32 on a CPU."""
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """Compile the model by torch.compile: slow to start, then faster. reduce-overhead adds CUDA graphs."""
    fsdp: bool = False
    """Keep weights, gradients, optimiser and average in shards over the processes, for U-Nets that outgrow a GPU; what
    is saved is the same. Also by `accelerate launch --use_fsdp`."""
    skip_non_finite: int = 0
    """Steps in a row that may be left out because a loss or gradient was not finite; 0: the first one stops the run."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpointing_steps: int = 500
    """A checkpoint (and the published model) every so many steps, and at the end."""
    checkpoints_total_limit: int = 2
    """Checkpoints kept; an old one goes only after the new one was verified."""
    validation_steps: int = 500
    """Measures on held-out data and a preview picture every so many steps, and at the end; 0: at the end only."""
    log_steps: int = 50
    """A line of metrics.jsonl every so many steps."""
    report_to: tuple[str, ...] = ()
    """Trackers that get the figures and previews too: tensorboard (in RUN/logs), wandb; several, or none."""
    tracker_project_name: str = "guided-latents"
    """The project of Weights & Biases that the run belongs to."""
    dataloader_num_workers: int = 0
    """Processes that prepare images; the result does not depend on their number."""
    max_parameters: int = 4_000_000_000
    """A network with more parameters than this is refused before it takes memory; the optimiser needs 16 bytes each."""
    dry_run: bool = False
    """Build everything and take a few steps, then print what the training would cost; nothing is written."""
    resume_from_checkpoint: str = "latest"
    """latest, or the name of a checkpoint of this run such as checkpoint-500."""

    def __post_init__(self) -> None:
        in_range(self, **{name: (TINY, high) for name, high in _POSITIVE.items()})
        in_range(self, **{name: (0, high) for name, high in _NOT_NEGATIVE.items()}, seed=(-LARGEST_SEED, LARGEST_SEED))
        if self.compile == "reduce-overhead" and self.gradient_accumulation_steps > 1:
            raise UserError(
                "`compile` reduce-overhead: its graphs overwrite the sums of `gradient_accumulation_steps`; use default"
            )
        if self.train_seconds and self.lr_scheduler not in _ENDLESS:
            raise UserError(f"`train_seconds`: a {self.lr_scheduler} rate ends at `max_train_steps`; take inverse_sqrt")
        if self.lr_scheduler == "polynomial" and not self.lr_end < self.learning_rate:
            peak = f"`learning_rate` {self.learning_rate:g}"
            raise UserError(f"must be below {peak}", setting="lr_end", value=f"{self.lr_end:g}")
        for name in ("ema_decay", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"must be in [0, 1), got {getattr(self, name)}", setting=name)

    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share: all but those that do not change its result."""
        free = set(_FREE)
        if self.lr_scheduler in _ENDLESS:
            free.add("max_train_steps")
        if self.compile == "none":  # runs from before there was a choice go on
            free.add("compile")
        free |= {name for name, schedule in _RATE_OPTIONS.items() if schedule != self.lr_scheduler}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in free}


@dataclass(frozen=True)
class AveragesConfig:
    """Averages of the weights beside the published one, of which `ldm ema` makes a model of any length."""

    ema_lengths: tuple[float, ...] = ()
    """Lengths of the averages to follow, as standard deviations of their profile relative to the training so far (0.05
    0.1 in EDM2); each costs a copy of the weights. Unset: none."""
    ema_snapshot_steps: int | None = None
    """A snapshot of these averages every so many steps, and at the end; unset: 50 in `max_train_steps`."""
    ema_snapshot_precision: Literal["float16", "float32"] = "float16"
    """Of the numbers in a snapshot."""

    def __post_init__(self) -> None:
        if self.ema_snapshot_steps is not None:
            at_least(self, ema_snapshot_steps=1)
        for length in self.ema_lengths:
            check_length(length, "ema_lengths")
        if len(set(self.ema_lengths)) < len(self.ema_lengths):
            raise UserError("one is given twice", setting="ema_lengths")

    def within(self, steps: int) -> AveragesConfig:
        """These settings for a training of so many steps."""
        return dataclasses.replace(self, ema_snapshot_steps=self.ema_snapshot_steps or -(-steps // _SNAPSHOTS))

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must share; nothing where there are none."""
        return {"averages": {"ema_lengths": list(self.ema_lengths)}} if self.ema_lengths else {}


def check_length(length: float, setting: str) -> None:
    """`UserError` unless there is a profile of this relative standard deviation."""
    if not 0 < length <= LONGEST_AVERAGE:
        longest = f"{LONGEST_AVERAGE:.3f}, the length of a plain mean"
        raise UserError(f"`{setting}` {length:g}: expected above 0 and at most {longest}")
