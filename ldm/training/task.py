"""What a training brings to the loop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ldm.training.adversary import Loss
from ldm.training.randomness import BatchPlan, StepRandom


class Task(Protocol):
    """What is trained. The loop calls nothing else of it, but for what a task may have:

    `adversary`: an `Adversary`, a second player that learns beside it. `best_by`: the start of the name of the measure
    by which the best model is kept, the lowest first. `watch`: a `PeriodicEvaluator`, of `pipeline(model)`.
    `averages`: an `AveragesConfig`, of the averages beside the published one.
    """

    kind: str
    """autoencoder, diffusion or classifier."""
    model: nn.Module
    """Everything with weights to train."""
    length: int
    """Training examples."""
    facts: dict[str, Any]
    """What a resumed run must have in common with this one."""

    def batches(self, plan: BatchPlan) -> Iterable[Any]:
        """The examples of each forward call, in the plan's order, on the device."""

    def loss(self, model: nn.Module, batch: Any, random: StepRandom) -> Loss:
        """The loss of one forward call; all randomness comes from `random`."""

    def validate(self, model: nn.Module) -> dict[str, Any]:
        """Measures on held-out data."""

    def preview(self, model: nn.Module) -> Tensor | None:
        """Pictures (N, 3, H, W) in [-1, 1] that show the progress, or None."""

    def publish(self, model: nn.Module, folder: Path) -> None:
        """Write the model folder's parts into `folder`, atomically."""
