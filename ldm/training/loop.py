"""The training loop: accumulation, precision, EMA, saving, exact resuming. Never a loss: a task brings that."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.runtime.compilation import check_compiler, compile_network
from ldm.runtime.distributed import current_processes
from ldm.runtime.errors import UserError
from ldm.runtime.files import read_json
from ldm.runtime.progress import progress
from ldm.runtime.tensors import read_tensors
from ldm.training.adversary import AdversarialTrainer, Loss
from ldm.training.averages import PowerAverages
from ldm.training.budget import Budget
from ldm.training.checkpoint import (
    chosen_checkpoint,
    load_optimizer_tensors,
    load_weights,
    optimizer_tensors,
    save_checkpoint,
)
from ldm.training.config import TrainingConfig
from ldm.training.ema import ExponentialMovingAverage
from ldm.training.evaluations import Evaluations, is_due
from ldm.training.finite_guard import FiniteGuard
from ldm.training.guards import Interrupted, full_disk_told, global_random_state_kept, stop_signals
from ldm.training.observer import Observer
from ldm.training.optimization import clip_gradients, make_optimizer, scheduled_rate
from ldm.training.processes import make_accelerator, means, on_any_process, others_alive, same_everywhere, shard_of
from ldm.training.randomness import BatchPlan, BatchShard, StepRandom, key
from ldm.training.run_folder import RunFolder
from ldm.training.sharding import Shards, check_shards, whole_tensor
from ldm.training.task import Task

__all__ = ["Interrupted", "Loss", "Task", "train"]
logger = logging.getLogger("ldm")


def train(task: Task, config: TrainingConfig, settings: str, device: torch.device, command: str = "") -> dict[str, Any]:
    """Train `task` in the run folder `config.output_dir`, resuming what is there; return the last measures.

    `settings` is the resolved configuration as YAML, stored as config.yaml; `command` goes to run.json. Leaves the
    global random states as they were. Raises `UserError` for a folder of another run, `FloatingPointError` for a loss
    or gradient that is not finite (before it reaches a weight), `Interrupted` after SIGINT or SIGTERM.
    """
    accelerator = make_accelerator(config, device)
    share = shard_of(config, accelerator)
    if accelerator.mixed_precision == "fp16" and getattr(task, "adversary", None) is not None:
        raise UserError(
            "its loss scale is for one player",
            remedy="with a discriminator use bf16 or no",
            setting="mixed_precision",
            value="fp16",
        )
    check_compiler(config.compile, device)
    check_shards(task, config)
    if config.dataloader_num_workers > task.length:
        raise UserError(
            f"there are {task.length} training images",
            remedy="take no more processes than that",
            setting="dataloader_num_workers",
            value=config.dataloader_num_workers,
        )
    if config.resume_from_checkpoint != "latest":  # refused, if so, before the folder is touched
        chosen_checkpoint(Path(config.output_dir), config.resume_from_checkpoint)

    def claim() -> RunFolder | None:
        wanted = (config.output_dir, task.kind, settings, task.facts, command)
        return RunFolder.claim(*wanted) if accelerator.is_main_process else None

    run = current_processes().run_on_all(claim)  # refused, all leave together
    try:
        with (
            global_random_state_kept(),
            stop_signals() as stop,
            others_alive(accelerator),
            full_disk_told(config.output_dir),
        ):
            return _Training(task, config, accelerator, share, run).steps(stop)
    finally:
        if run is not None:
            run.close()


class _Training:
    """The state of one training between its first and its last step."""

    def __init__(
        self, task: Task, config: TrainingConfig, accelerator: Accelerator, share: BatchShard, run: RunFolder | None
    ) -> None:
        self.task, self.config, self.accelerator, self.share, self.run = task, config, accelerator, share, run
        self.device = accelerator.device
        self.model = task.model.to(self.device).to(memory_format=torch.channels_last)  # faster on CPUs too
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.ema = ExponentialMovingAverage(self.model, config.ema_decay) if config.ema_decay > 0 else None
        self.shards = Shards(config, accelerator)
        self.shards.split(self.model, *([self.ema.model] if self.ema is not None else []))
        self.optimizer = make_optimizer(self.model, config)
        self.averages = PowerAverages(self.model, getattr(task, "averages", None))
        adversary = getattr(task, "adversary", None)
        self.second = AdversarialTrainer(adversary, config, self.device) if adversary is not None else None
        players = (self.model,) if self.second is None else (self.model, self.second.model)
        self.watch = FiniteGuard(config.skip_non_finite, accelerator, players)
        self.evaluations = Evaluations(run, task, current_processes())
        self.step, self.budget = 0, Budget(config.train_seconds, accelerator)
        self._resume()
        compile_network(self.model, config.compile)
        self.wrapped, self.prepared = self.shards.prepare(self.model, self.optimizer)

    @property
    def end(self) -> int:
        """The last step: this one, once the budget of time is spent."""
        return self.step if self.budget.spent else self.config.max_train_steps

    @property
    def published(self) -> nn.Module:
        """The weights that are measured and published; all processes must ask for them."""
        return self.shards.gathered(self.ema.model if self.ema is not None else self.model)

    def steps(self, stop: dict[str, int]) -> dict[str, Any]:
        config = self.config
        plan = BatchPlan(self.task.length, config.seed, self.share, self.step, config.max_train_steps)
        batches = iter(self.task.batches(plan))
        told = Observer(self.run, self.task, config, self.step)
        measures: dict[str, Any] = {}
        evaluated = self._evaluate(told, stop)  # what the process before did not come to
        since, seen = time.monotonic(), 0
        remaining, label = range(self.step, self.end), f"train {self.task.kind}"
        for _ in progress(remaining, label, total=config.max_train_steps, initial=self.step, postfix=told.beside):
            terms, norm, rate = self.advance(batches)
            seen += 1
            last = self.step == self.end
            unusual = self.watch.entry(self.task, config.seed, self.step - 1, config.train_batch_size)
            if self.step % config.log_steps == 0 or last or "not_finite" in unusual:
                entry = means(terms, self.accelerator) | {"gradient_norm": float(norm), "learning_rate": rate} | unusual
                speed = round(seen * config.train_batch_size / (time.monotonic() - since), 1)
                told.step(self.step, {**entry, "images_per_second": speed})
                since, seen = time.monotonic(), 0
            self.watch.stop_or_go_on()
            self.averages.snapshot(self.run, self.step, last=last)
            if last or (config.validation_steps and self.step % config.validation_steps == 0):
                measures = told.validate(self.published.eval(), self.step)
                since, seen = time.monotonic(), 0
            stopping = on_any_process(bool(stop), self.accelerator) and not last  # read once: one may come while saving
            saving = last or stopping or self.step % config.checkpointing_steps == 0
            if saving:
                self._save()
                since, seen = time.monotonic(), 0
            if not stopping and is_due(self.task, self.step, self.end):
                evaluated = self._evaluate(told, stop)
                stopping = on_any_process(bool(stop), self.accelerator) and not last
                if stopping and not saving:
                    self._save()
                since, seen = time.monotonic(), 0
            if stopping:
                raise Interrupted(stop.get("signal", signal.SIGTERM), self.step)
            if last:
                break
        if not remaining and self.run is not None:  # nothing to do: what was measured then
            measures = self.run.last_measures()
        known = on_any_process(bool(measures), self.accelerator)
        return (measures if known else told.validate(self.published.eval(), self.step)) | evaluated

    def advance(self, batches: Iterator[Any]) -> tuple[dict[str, Tensor], Tensor, float]:
        """One step: the parts of the loss, the norm of the gradient before clipping, the learning rate."""
        with self.budget.counted():
            found = self._one_step(batches)
        self.step += 1
        return found

    def _one_step(self, batches: Iterator[Any]) -> tuple[dict[str, Tensor], Tensor, float]:
        config, accumulation = self.config, self.share.accumulation
        rate = scheduled_rate(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        torch.manual_seed(key(config.seed, self.step, "dropout", self.share.rank))
        self.wrapped.train()
        self.watch.begin()
        sums: dict[str, Tensor] = {}
        second = self.second if self.second is not None and self.second.adversary.learns_at(self.step) else None
        alone = second is not None and second.adversary.alone_at(self.step)
        for micro in range(accumulation):
            batch, shown = next(batches), None
            random = StepRandom(config.seed, self.step, micro, self.share, self.device)
            if not alone:
                waits = micro < accumulation - 1
                with self.accelerator.no_sync(self.wrapped) if waits else nullcontext():
                    shown = self._forward_backward(batch, random, sums)
            if second is not None:
                with self.accelerator.autocast():
                    _add(sums, second.forward_backward(batch, shown, random, accumulation))
        limit = config.max_grad_norm or math.inf
        plain = self.device.type == "cpu" and not self.shards.active
        clip = clip_gradients if plain else self.accelerator.clip_grad_norm_  # which unscales, and knows of shards
        norm = whole_tensor(clip(self.model.parameters(), limit))
        norms = {} if self.accelerator.scaler is not None else {"gradient": norm}  # the scaler sees to its own
        if second is not None:
            norms[f"{second.adversary.name}'s gradient"] = second.gradient_norm()
        if self.watch.refuses(sums, norms):
            self._leave_out(second)
            return sums, norm, rate
        if second is not None:
            sums[f"{second.adversary.name}_gradient_norm"] = norms[f"{second.adversary.name}'s gradient"]
            second.update(self.step)
        if not alone:
            self.prepared.step()
            self.prepared.zero_grad(set_to_none=True)
            if self.ema is not None and not self.prepared.step_was_skipped:
                self.ema.update(self.model, self.step)
            self.averages.update(self.model, self.step + 1)
        return sums, norm, rate

    def _leave_out(self, second: AdversarialTrainer | None) -> None:
        self.prepared.zero_grad(set_to_none=True)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        if second is not None:
            second.optimizer.zero_grad(set_to_none=True)

    def _forward_backward(self, batch: Any, random: StepRandom, sums: dict[str, Tensor]) -> Tensor | None:
        with self.second.frozen() if self.second is not None else nullcontext():
            with self.accelerator.autocast():
                loss = self.task.loss(self.wrapped, batch, random)
            self.accelerator.backward(loss.total / self.share.accumulation)
        terms = {"loss": loss.total, **loss.terms}
        _add(sums, {name: value.detach() / self.share.accumulation for name, value in terms.items()})
        return loss.shown

    def _evaluate(self, told: Observer, stop: dict[str, int]) -> dict[str, Any]:
        """After the checkpoint, for it may take long: what is not evaluated when the process ends, is later."""
        if not is_due(self.task, self.step, self.end):
            return {}
        found = self.evaluations.figures(self.published.eval(), self.step, lambda: stop)
        told.evaluated(self.step, found)
        return found

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps, by file."""
        found = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer, self.model)}
        if self.ema is not None:
            found["ema"] = self.ema.model.state_dict()
        return found | self.averages.tensors() | (self.second.tensors() if self.second is not None else {})

    def _save(self) -> None:
        tensors, published = self.shards.whole(self.tensors()), self.published
        if self.run is not None:
            self.run.sync_metrics()
            scaler = self.accelerator.scaler
            state = {
                "scaler": scaler.state_dict() if scaler is not None else None,
                "watch": self.watch.state(),
                "seconds": self.budget.seconds,
            }
            self.task.publish(published, self.run.path)
            save_checkpoint(self.run.path, self.step, tensors, state, self.config.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        folder = chosen_checkpoint(Path(self.config.output_dir), self.config.resume_from_checkpoint)
        same_everywhere(folder.name if folder is not None else "none", self.accelerator)
        if folder is None:
            return
        state = read_json(folder / "state.json")
        load_weights(self.model, folder / "model.safetensors")
        load_optimizer_tensors(self.optimizer, self.model, read_tensors(folder / "optimizer.safetensors"))
        if self.ema is not None:
            load_weights(self.ema.model, folder / "ema.safetensors")
        if self.second is not None:
            load_weights(self.second.model, folder / "opponent.safetensors")
            self.second.load_optimizer(read_tensors(folder / "opponent_optimizer.safetensors"))
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.watch.load(state.get("watch") or {})
        self.step = int(state["step"])
        self.budget.resume(float(state.get("seconds", 0)))
        self.averages.resume(folder, self.step, self.run)
        if self.step:
            logger.info("resuming from %s", folder.name)


def _add(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value
