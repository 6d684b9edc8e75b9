"""What a training brings to the loop: a task, its loss, and the adversary that it may have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldm.data.dataset import ImageData
from ldm.data.report import DataReport
from ldm.evaluation.periodic import PeriodicEvaluator
from ldm.training.config import AveragesConfig
from ldm.training.randomness import BatchPlan, StepRandom


@dataclass(frozen=True)
class Loss:
    """What a network minimises, its named terms for the log, and the images that the adversary learns from."""

    total: Tensor
    terms: dict[str, Tensor]
    generated: Tensor | None = None  # detached


class Adversary:
    """A second network that learns against the task's model."""

    name: str
    """Its name in the log and in messages."""
    model: nn.Module
    """Its weights: the task's own loss may call it, but cannot change it."""
    learning_rate: float
    """Peak of its learning rate, on the schedule of the task's model."""
    betas: tuple[float, float]
    """Of its AdamW."""

    def learns_at(self, step: int) -> bool:
        """Whether it learns at a step counted from 0."""
        return True

    def alone_at(self, step: int) -> bool:
        """Whether the task's model does not learn at this step."""
        return False

    def loss(self, batch: Any, generated: Tensor | None, random: StepRandom) -> Loss:
        """The loss of one forward call; `generated` is that of the task's `Loss`, None where it did not learn."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What its weights need after each step, such as clipping."""


class Task:
    """What is trained. The loop calls nothing else of it."""

    kind: str
    """autoencoder, diffusion, classifier, prior or gan."""
    model: nn.Module
    """Everything with weights to train."""
    length: int
    """Training examples."""
    fingerprint: dict[str, Any]
    """What a resumed run must have in common with this one."""
    data: ImageData | None = None
    """The training images; a message about some of them names their files."""
    adversary: Adversary | None = None
    best_by: str = ""
    """The start of the name of the measure by which the best model is kept, the lowest; empty: none is kept."""
    evaluator: PeriodicEvaluator | None = None
    """Measures samples of `pipeline(model)`."""
    averages = AveragesConfig()
    """The averages beside the published one."""

    @property
    def report(self) -> DataReport | None:
        """What was read of the data; a task adds what it makes of them, such as the tokens of captions."""
        return None if self.data is None else self.data.report

    def batches(self, plan: BatchPlan) -> Iterable[Any]:
        """The examples of each forward call, in the plan's order, on the device."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any, random: StepRandom) -> Loss:
        """The loss of one forward call; all randomness comes from `random`."""
        raise NotImplementedError

    def validate(self, model: nn.Module) -> dict[str, Any]:
        """Measures on held-out data."""
        raise NotImplementedError

    def publish(self, model: nn.Module, folder: Path) -> None:
        """Write all parts of the model folder into `folder`, an empty one of a `publication`."""
        raise NotImplementedError

    @property
    def autoencoder_fingerprint(self) -> str:
        """Of the frozen autoencoder whose latents or codes the model is trained on; "" without one."""
        fingerprint = self.fingerprint.get("autoencoder")
        return fingerprint if isinstance(fingerprint, str) else ""

    def preview(self, model: nn.Module) -> Tensor | None:
        """Images (N, 3, H, W) in [-1, 1] that show the progress, or None."""
        return None

    def pipeline(self, model: nn.Module) -> Any:
        """The model as it stands, ready to sample."""
        raise NotImplementedError

    def skip_cache(self) -> bool:
        """Write no cache of the data set from now on; whether each batch is encoded anew instead."""
        return False
