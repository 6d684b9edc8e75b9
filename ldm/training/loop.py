"""The training loop: accumulation, precision, EMA, saving, exact resuming. Never a loss: a task brings that."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.runtime.compilation import check_compiler
from ldm.runtime.disk import check_free
from ldm.runtime.distributed import current_processes
from ldm.runtime.errors import UserError
from ldm.runtime.exhaustion import explain_exhaustion
from ldm.runtime.progress import progress
from ldm.runtime.stopping import GOES_ON, Interrupted
from ldm.runtime.text import counted
from ldm.training.adversary import AdversarialTrainer
from ldm.training.checkpoint import check_not_past, checkpoint_to_resume
from ldm.training.config import TrainingConfig
from ldm.training.evaluations import Evaluations
from ldm.training.guards import explain_full_disk, preserve_random_state, stop_signals
from ldm.training.needs import WITH_LESS_MEMORY, bytes_to_write
from ldm.training.observer import Observer
from ldm.training.optimizers import clip_gradients, scheduled_rate
from ldm.training.processes import make_accelerator, report_lost_process, shard_of
from ldm.training.randomness import BatchPlan, StepRandom, key
from ldm.training.run_folder import RunFolder
from ldm.training.sharding import check_shards, full_tensor
from ldm.training.state import TrainingState
from ldm.training.task import Task


def train(task: Task, config: TrainingConfig, settings: str, device: torch.device, command: str = "") -> dict[str, Any]:
    """Train `task` in the run folder `config.output_dir`, resuming what is there; return the last measures.

    `settings` is the resolved configuration as YAML, stored as config.yaml; `command` goes to run.json. Leaves the
    global random states as they were. Raises `UserError` for a folder of another run, `FloatingPointError` for a loss
    or gradient that is not finite (before it reaches a weight), `Interrupted` after SIGINT or SIGTERM.
    """
    accelerator = make_accelerator(config, device)
    shard = shard_of(config, accelerator)
    _check(task, config, accelerator, device)
    processes, need = current_processes(), bytes_to_write(task, config)

    def claim() -> RunFolder | None:
        if not accelerator.is_main_process:
            return None
        check_free(config.output_dir, need, "its checkpoints", "make room, or lower `checkpoints_total_limit`")
        return RunFolder.claim(config.output_dir, task.kind, settings, task.fingerprint, command)

    run = processes.run_on_all(claim)  # if one process refuses, all stop together
    try:
        with (
            preserve_random_state(),
            stop_signals() as stop,
            report_lost_process(processes),
            explain_full_disk(config.output_dir, need),
            explain_exhaustion(WITH_LESS_MEMORY),
        ):
            return TrainingLoop(TrainingState(task, config, accelerator, shard, run), stop).run()
    finally:
        if run is not None:
            run.close()


class TrainingLoop:
    """The steps of a training, and what follows each: logging, validating, saving, evaluating, stopping."""

    def __init__(self, state: TrainingState, stop: dict[str, int]) -> None:
        """`stop` holds the signal as soon as there is one."""
        task, config = state.task, state.config
        self.state, self.config, self.stop = state, config, stop
        plan = BatchPlan(task.length, config.seed, state.shard, state.step, config.max_train_steps)
        self.batches = iter(task.batches(plan))
        self.observer = Observer(state.run, task, config, state.step)
        self.evaluations = Evaluations(state.run, task, state.processes)
        self.measures: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Take all steps that are left; returns the last measures."""
        state = self.state
        state.publish_again()
        self.evaluate()  # if the process before stopped between its checkpoint and its evaluation
        steps, label = range(state.step, state.end), f"train {state.task.kind}"
        total, first = self.config.max_train_steps, state.step
        for _ in progress(steps, label, total=total, initial=first, postfix=lambda: self.observer.postfix):
            self.after_step(take_step(state, self.batches))
            if state.step == state.end:
                break
        if not steps and state.run is not None:  # nothing was left to do
            self.measures = state.run.last_measures()
        if not state.processes.any(bool(self.measures), state.device):
            self.validate()
        return self.measures | self.metrics

    def after_step(self, result: StepResult) -> None:
        """Log, validate, save, evaluate, each where it is due; `Interrupted` after a signal."""
        state, config = self.state, self.config
        step, last = state.step, state.step == state.end
        self.log(result, last)
        state.guard.raise_or_warn()
        state.averages.snapshot(state.run, step, last=last)
        if last or (config.validation_steps and step % config.validation_steps == 0):
            self.validate()
        stopping = self.stopping(last)  # read once: a signal may come while saving
        saving = last or stopping or step % config.checkpointing_steps == 0
        if saving:
            self.save()
        if not stopping and self.evaluate():
            stopping = self.stopping(last)
            if stopping and not saving:
                self.save()
        if stopping:
            raise Interrupted(self.stop.get("signal", signal.SIGTERM), f"stopped at step {step}; {GOES_ON}")

    def log(self, result: StepResult, last: bool) -> None:
        """Every `log_steps`, at the end, and where a loss or gradient is not finite."""
        state, step = self.state, self.state.step
        self.observer.steps += 1
        non_finite = state.guard.entry(state.task, self.config.seed, step - 1, self.config.train_batch_size)
        if step % self.config.log_steps == 0 or last or "not_finite" in non_finite:
            values = torch.stack([value.detach().float() for value in result.terms.values()])
            entry: dict[str, Any] = dict(zip(result.terms, state.processes.mean(values).tolist(), strict=True))
            entry |= {"gradient_norm": float(result.gradient_norm), "learning_rate": result.learning_rate}
            self.observer.log_step(step, entry | non_finite)

    def validate(self) -> None:
        """Measure the published weights on held-out data."""
        step = self.state.step
        self.measures = self.observer.validate(self.state.published.eval(), step, last=step == self.state.end)

    def save(self) -> None:
        """Write a checkpoint and the model folder."""
        self.state.save()
        self.observer.restart_clock()

    def evaluate(self) -> bool:
        """Measure samples of the published weights, where due; whether so.

        It comes after the checkpoint, for it may take long: if the process ends meanwhile, it is made on resuming.
        """
        state = self.state
        if not self.evaluations.due(state.step, state.step == state.end):
            return False
        self.metrics = self.evaluations.evaluate(state.published.eval(), state.step, lambda: self.stop)
        self.observer.log_evaluation(state.step, self.metrics)
        return True

    def stopping(self, last: bool) -> bool:
        """Whether any process has had a signal; after the last step it changes nothing."""
        return self.state.processes.any(bool(self.stop), self.state.device) and not last


@dataclass(frozen=True)
class StepResult:
    """The terms of the loss, the norm of the gradient before clipping, the learning rate."""

    terms: dict[str, Tensor]
    gradient_norm: Tensor
    learning_rate: float


def take_step(state: TrainingState, batches: Iterator[Any]) -> StepResult:
    """One optimiser step of the model and, where it learns, of its adversary."""
    with state.budget.counted():
        result = _optimizer_step(state, batches)
    state.step += 1
    return result


def _optimizer_step(state: TrainingState, batches: Iterator[Any]) -> StepResult:
    step, config = state.step, state.config
    learning_rate = scheduled_rate(step, config)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * group["ratio"]
    torch.manual_seed(key(config.seed, step, "dropout", state.shard.rank))
    state.wrapped.train()
    state.guard.begin()
    adversary = state.adversary
    if adversary is not None and not adversary.adversary.learns_at(step):
        adversary = None
    alone = adversary is not None and adversary.adversary.alone_at(step)

    terms = _forward_backward(state, batches, adversary, alone)
    norm = _clip_gradient(state)
    norms = {"gradient": norm} if state.accelerator.scaler is None else {}  # the scaler checks its own
    if adversary is not None:
        norms[f"{adversary.name}'s gradient"] = adversary.clip_gradient()
    if state.guard.rejects(terms, norms):
        _discard_gradients(state, adversary)
        return StepResult(terms, norm, learning_rate)

    if adversary is not None:
        terms[f"{adversary.name}_gradient_norm"] = norms[f"{adversary.name}'s gradient"]
        adversary.update(step)
    if not alone:
        state.prepared.step()
        state.prepared.zero_grad(set_to_none=True)
        if state.ema is not None and not state.prepared.step_was_skipped:
            state.ema.update(state.model, step)
        state.averages.update(state.model, step + 1)
    return StepResult(terms, norm, learning_rate)


def _forward_backward(
    state: TrainingState, batches: Iterator[Any], adversary: AdversarialTrainer | None, alone: bool
) -> dict[str, Tensor]:
    """Add up the gradients of a step's forward calls; returns the terms of the losses, means over the calls."""
    accumulation, accelerator = state.shard.accumulation, state.accelerator
    sums: dict[str, Tensor] = {}

    def add(terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            sums[name] = sums[name] + value if name in sums else value

    for micro in range(accumulation):
        batch, generated = next(batches), None
        random = StepRandom(state.config.seed, state.step, micro, state.shard, state.device)
        if not alone:
            last = micro == accumulation - 1
            frozen = state.adversary.frozen() if state.adversary is not None else nullcontext()
            with nullcontext() if last else accelerator.no_sync(state.wrapped), frozen:
                with accelerator.autocast():
                    loss = state.task.loss(state.wrapped, batch, random)
                accelerator.backward(loss.total / accumulation)
            add({name: v.detach() / accumulation for name, v in {"loss": loss.total, **loss.terms}.items()})
            generated = loss.generated
        if adversary is not None:
            with accelerator.autocast():
                add(adversary.forward_backward(batch, generated, random, accumulation))
    return sums


def _clip_gradient(state: TrainingState) -> Tensor:
    """Scale the model's gradient down to the limit; returns its norm before."""
    on_cpu = state.device.type == "cpu" and not state.shards.active
    clip = clip_gradients if on_cpu else state.accelerator.clip_grad_norm_  # which unscales, and knows shards
    return full_tensor(clip(state.model.parameters(), state.config.max_grad_norm or math.inf))


def _discard_gradients(state: TrainingState, adversary: AdversarialTrainer | None) -> None:
    state.prepared.zero_grad(set_to_none=True)
    if state.accelerator.scaler is not None:
        state.accelerator.scaler.update()
    if adversary is not None:
        adversary.optimizer.zero_grad(set_to_none=True)


def _check(task: Task, config: TrainingConfig, accelerator: Accelerator, device: torch.device) -> None:
    """`UserError` for settings that the task or this machine cannot follow."""
    if accelerator.mixed_precision == "fp16" and task.adversary is not None:
        raise UserError("`mixed_precision` fp16 has a loss scale for one optimiser; with a discriminator use bf16")
    check_compiler(config.compile, device)
    check_shards(task, config)
    if config.dataloader_num_workers > task.length:
        problem = f"more than {counted(task.length, 'training image', 'training images')}"
        raise UserError(problem, setting="dataloader_num_workers", value=config.dataloader_num_workers)
    check_not_past(Path(config.output_dir), config.resume_from_checkpoint, config.max_train_steps)
    if config.resume_from_checkpoint != "latest":  # refused, if so, before the folder is touched
        checkpoint_to_resume(Path(config.output_dir), config.resume_from_checkpoint)
