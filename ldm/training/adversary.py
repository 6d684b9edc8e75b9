"""A second player beside the one that is trained: weights, optimiser and schedule of its own, gradients never mixed.

The players move at the same time: both gradients are taken at the weights before the step. While the first player's
are taken, the second is frozen and in evaluation mode; while the second's are, it sees pictures without a past.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from ldm.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from ldm.training.config import TrainingConfig
from ldm.training.optimization import clip_gradients, make_optimizer, scheduled_rate
from ldm.training.randomness import StepRandom


@dataclass(frozen=True)
class Loss:
    """What a player minimises, its named parts for the log, and what the other player is shown of it, detached."""

    total: Tensor
    terms: dict[str, Tensor]
    shown: Tensor | None = None


class Adversary(Protocol):
    """What a task brings where a second network learns against the first."""

    name: str
    """What to call it in the log and in messages."""
    model: nn.Module
    """Its weights: the task's own loss may ask for its opinion, but cannot change it."""
    learning_rate: float
    """Peak of its learning rate, on the schedule of the first player's."""
    betas: tuple[float, float]
    """Of its AdamW."""

    def learns_at(self, step: int) -> bool:
        """Whether it learns at a step counted from 0."""

    def alone_at(self, step: int) -> bool:
        """Whether the first player leaves this step to it."""

    def loss(self, batch: Any, shown: Tensor | None, random: StepRandom) -> Loss:
        """The loss of one forward call; `shown` is what the first player's `Loss` had, None where it did not play."""

    def after_step(self) -> None:
        """What its weights need after each step, such as clipping."""


class AdversarialTrainer:
    """The state of an opponent between the first step and the last.

    Its gradients are averaged over the processes by hand: penalties on slopes need derivatives of derivatives, which
    DistributedDataParallel does not support. Its weights start equal everywhere and so stay equal.
    """

    def __init__(self, adversary: Adversary, config: TrainingConfig, device: torch.device) -> None:
        self.adversary = adversary
        self.model = adversary.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config = dataclasses.replace(
            config,
            optimizer="adamw",
            learning_rate=adversary.learning_rate,
            adam_beta1=adversary.betas[0],
            adam_beta2=adversary.betas[1],
        )
        self.optimizer = make_optimizer(self.model, self.config)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While the first player learns: no gradient for these weights, no change of their state."""
        self.model.eval().requires_grad_(False)
        try:
            yield
        finally:
            self.model.train().requires_grad_(True)

    def forward_backward(self, batch: Any, shown: Tensor | None, random: StepRandom, pieces: int) -> dict[str, Tensor]:
        """Add this piece's gradient; returns the loss and its parts, each over the number of pieces."""
        loss = self.adversary.loss(batch, shown, random)
        (loss.total / pieces).backward()
        name = self.adversary.name
        terms = {f"{name}_loss": loss.total, **{f"{name}_{part}": value for part, value in loss.terms.items()}}
        return {part: value.detach() / pieces for part, value in terms.items()}

    def gradient_norm(self) -> Tensor:
        """The norm of the gradient of all processes together, which is then scaled down to the limit."""
        parameters = list(self.model.parameters())
        if distributed.is_available() and distributed.is_initialized():
            for parameter in parameters:
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= distributed.get_world_size()
        return clip_gradients(parameters, self.config.max_grad_norm or math.inf)

    def update(self, step: int) -> None:
        """One step of its optimiser, at its learning rate for this step."""
        rate = scheduled_rate(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.adversary.after_step()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps, by file."""
        optimizer = optimizer_tensors(self.optimizer, self.model)
        return {"opponent": self.model.state_dict(), "opponent_optimizer": optimizer}

    def load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """The optimiser's state as `tensors` gave it."""
        load_optimizer_tensors(self.optimizer, self.model, tensors)
