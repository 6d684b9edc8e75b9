"""Everything that a training changes, and that a checkpoint holds: weights, averages, optimisers, counters."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.runtime.compilation import compile_network
from ldm.runtime.distributed import current_processes
from ldm.runtime.errors import UserError
from ldm.sampling.publication import publication
from ldm.training.adversary import AdversarialTrainer
from ldm.training.averages import ExponentialMovingAverage, PowerAverages
from ldm.training.checkpoint import (
    State,
    checkpoint_to_resume,
    load_optimizer_tensors,
    load_weights,
    optimizer_tensors,
    read_optimizer_tensors,
    read_state,
    save_checkpoint,
    without_moments,
)
from ldm.training.config import TrainingConfig
from ldm.training.finite_guard import FiniteGuard
from ldm.training.guards import Budget
from ldm.training.optimizers import make_optimizer
from ldm.training.processes import check_same_checkpoint
from ldm.training.published import outdated
from ldm.training.randomness import BatchShard
from ldm.training.run_folder import RunFolder
from ldm.training.sharding import Shards
from ldm.training.task import Task

logger = logging.getLogger("ldm")


class TrainingState:
    """A training between two steps, resumed from its run folder; `run` is None where nothing is written."""

    def __init__(
        self, task: Task, config: TrainingConfig, accelerator: Accelerator, shard: BatchShard, run: RunFolder | None
    ) -> None:
        self.task, self.config, self.accelerator, self.shard, self.run = task, config, accelerator, shard, run
        self.device, self.processes = accelerator.device, current_processes()
        self.model: nn.Module = task.model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on CPUs too
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.ema = ExponentialMovingAverage(self.model, config.ema_decay) if config.ema_decay > 0 else None
        self.shards = Shards(config, accelerator)
        self.shards.split(self.model, *([self.ema.model] if self.ema is not None else []))
        self.optimizer = make_optimizer(self.model, config)
        self.averages = PowerAverages(self.model, task.averages)
        self.adversary: AdversarialTrainer | None = None
        if task.adversary is not None:
            self.adversary = AdversarialTrainer(task.adversary, config, self.device, self.processes)
        self.guard = FiniteGuard(config.skip_non_finite, self.processes, self.models)
        self.step, self.budget = 0, Budget(config.train_seconds, self.processes, self.device)
        self._resume()
        compile_network(self.model, config.compile)
        self.wrapped, self.prepared = self.shards.prepare(self.model, self.optimizer)

    @property
    def models(self) -> list[nn.Module]:
        """The task's model and, where there is one, its adversary's."""
        return [self.model, *([self.adversary.model] if self.adversary is not None else [])]

    @property
    def optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        """The optimisers with their models, by the files of their moments."""
        optimizers: dict[str, tuple[torch.optim.Optimizer, nn.Module]] = {"optimizer": (self.optimizer, self.model)}
        if self.adversary is not None:
            optimizers["opponent_optimizer"] = (self.adversary.optimizer, self.adversary.model)
        return optimizers

    @property
    def end(self) -> int:
        """The last step: this one, once the budget of time is spent."""
        return self.step if self.budget.spent else self.config.max_train_steps

    @property
    def published(self) -> nn.Module:
        """The weights that are measured and published, in evaluation mode; all processes must call it."""
        return self.shards.gathered(self.ema.model if self.ema is not None else self.model)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by file."""
        tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer, self.model)}
        if self.ema is not None:
            tensors["ema"] = self.ema.model.state_dict()
        return tensors | self.averages.tensors() | (self.adversary.tensors() if self.adversary is not None else {})

    def save(self) -> None:
        """Write a checkpoint and publish the model folder; all processes must call it."""
        tensors, published = self.shards.whole(self.tensors()), self.published
        if self.run is not None:
            self.run.sync_metrics()
            scaler = self.accelerator.scaler
            state = {
                "scaler": scaler.state_dict() if scaler is not None else None,
                "watch": self.guard.state(),
                "seconds": self.budget.seconds,
                "without_moments": {file: without_moments(*pair) for file, pair in self.optimizers.items()},
            }
            save_checkpoint(self.run.path, self.step, tensors, state, self.config.checkpoints_total_limit)
            self._publish(published)  # second: the model is never ahead of the newest checkpoint
        self.accelerator.wait_for_everyone()

    def publish_again(self) -> None:
        """After resuming: publish the weights where the model folder is not that of the checkpoint; all must call it.

        It is not where the process ended between its checkpoint and its model, or where a part was damaged since.
        """
        run = self.run
        reason = self.processes.run_on_main_and_broadcast(
            lambda: "" if run is None or not self.step else outdated(run.path, self.step)
        )
        if not reason:
            return
        published = self.published
        if run is not None:
            logger.info("the model of step %d is published again: %s", self.step, reason)
            self._publish(published)
        self.accelerator.wait_for_everyone()

    def _publish(self, published: nn.Module) -> None:
        assert self.run is not None
        fingerprint = self.task.autoencoder_fingerprint
        with publication(self.run.path, step=self.step, autoencoder=fingerprint) as folder:
            self.task.publish(published, folder)

    def _resume(self) -> None:
        folder = checkpoint_to_resume(Path(self.config.output_dir), self.config.resume_from_checkpoint)
        check_same_checkpoint(folder.name if folder is not None else "none", self.processes)
        if folder is None:
            return
        state = read_state(folder)
        load_weights(self.model, folder / "model.safetensors")
        if self.ema is not None:
            load_weights(self.ema.model, folder / "ema.safetensors")
        if self.adversary is not None:
            load_weights(self.adversary.model, folder / "opponent.safetensors")
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.guard.load(state.get("watch") or {})
        self._load_moments(folder, state)
        self.step = state["step"]
        self.budget.resume(state.get("seconds", 0.0))
        self.averages.resume(folder, self.step, self.run)
        if self.step:
            logger.info("resuming from %s", folder.name)

    def _load_moments(self, folder: Path, state: State) -> None:
        """The state of the optimisers; one that has taken steps has moments."""
        absent = state.get("without_moments") or {}
        for file, (optimizer, model) in self.optimizers.items():
            path = folder / f"{file}.safetensors"
            tensors = read_optimizer_tensors(path, optimizer, model, absent.get(file))
            if not tensors and file == "optimizer" and state["step"] > self.guard.left_out:
                raise UserError(f"{path}: holds no moments, after {state['step']} steps")
            load_optimizer_tensors(optimizer, model, tensors)
