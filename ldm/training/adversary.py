"""The training of an adversary beside the task's model: weights, optimiser and schedule of its own.

Both learn at the same time: both gradients are taken at the weights before the step, and never mixed. While the model's
are taken, the adversary is frozen and in evaluation mode; while the adversary's are, it gets detached images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.runtime.distributed import Processes
from ldm.training.checkpoint import optimizer_tensors
from ldm.training.config import TrainingConfig
from ldm.training.optimizers import clip_gradients, make_optimizer, scheduled_rate
from ldm.training.randomness import StepRandom
from ldm.training.task import Adversary


class AdversarialTrainer:
    """The state of an adversary between the first step and the last.

    Its gradients are averaged over the processes by hand: penalties on slopes need derivatives of derivatives, which
    DistributedDataParallel does not support. Its weights start equal everywhere and so stay equal.
    """

    def __init__(
        self, adversary: Adversary, config: TrainingConfig, device: torch.device, processes: Processes
    ) -> None:
        self.adversary, self.processes = adversary, processes
        self.name = adversary.name
        self.model: nn.Module = adversary.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        beta1, beta2 = adversary.betas
        self.config = dataclasses.replace(
            config, optimizer="adamw", learning_rate=adversary.learning_rate, adam_beta1=beta1, adam_beta2=beta2
        )
        self.optimizer = make_optimizer(self.model, self.config)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While the task's model learns: no gradient for these weights, no change of their state."""
        self.model.eval().requires_grad_(False)
        try:
            yield
        finally:
            self.model.train().requires_grad_(True)

    def forward_backward(
        self, batch: Any, generated: Tensor | None, random: StepRandom, accumulation: int
    ) -> dict[str, Tensor]:
        """Add the gradient of one forward call; returns its loss and terms, each over the number of calls a step."""
        loss = self.adversary.loss(batch, generated, random)
        (loss.total / accumulation).backward()
        terms = {f"{self.name}_loss": loss.total}
        terms |= {f"{self.name}_{term}": value for term, value in loss.terms.items()}
        return {term: value.detach() / accumulation for term, value in terms.items()}

    def clip_gradient(self) -> Tensor:
        """Average the gradient over the processes and scale it down to the limit; returns its norm before."""
        parameters = list(self.model.parameters())
        for parameter in parameters:
            if parameter.grad is not None:
                self.processes.mean(parameter.grad)
        return clip_gradients(parameters, self.config.max_grad_norm or math.inf)

    def update(self, step: int) -> None:
        """One step of its optimiser, at its learning rate for this step."""
        learning_rate = scheduled_rate(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.adversary.after_step()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by file."""
        optimizer = optimizer_tensors(self.optimizer, self.model)
        return {"opponent": self.model.state_dict(), "opponent_optimizer": optimizer}
