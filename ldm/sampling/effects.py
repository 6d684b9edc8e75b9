"""How much a guidance changes the predictions, so that one without effect is said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers import Guidance, Level, Prediction

NEGLIGIBLE = 1 / 255  # half a step of 8-bit images in [-1, 1]; latents have unit variance, as images have about


@dataclass
class Effect:
    """The largest change of the denoised estimate that a guidance made at one level, over all samples so far.

    It is the root mean square of the change, times alpha / sqrt(alpha^2 + sigma^2): in high noise the estimate is of
    little weight.
    """

    name: str
    largest: float = 0.0
    called: bool = False  # whether any sample was drawn
    _changes: Tensor | None = None

    def add(self, before: Prediction, after: Prediction) -> None:
        """One call of the guidance; it does not wait for the device."""
        self.called = True
        if after is before or after.level.alpha == 0:
            return
        level = after.level
        change = (after.denoised - before.denoised).float().square().mean().sqrt()
        change = change * (level.alpha / math.hypot(level.alpha, level.sigma))
        self._changes = change if self._changes is None else torch.maximum(change, self._changes)

    def finish(self) -> None:
        """Read the changes from the device, after a batch."""
        if self._changes is not None:
            self.largest, self._changes = max(self.largest, float(self._changes)), None

    @property
    def note(self) -> str:
        """That it changes nothing, or less than can be seen; "" where it does."""
        if self.largest >= NEGLIGIBLE or not self.called:
            return ""
        if self.largest == 0:
            return f"{self.name} changed nothing"
        return (
            f"{self.name} changed the predictions by {self.largest:.1g} at most, less than the rounding of the images"
        )


def without_effect(effects: Iterable[Effect], notes: Sequence[str] = ()) -> list[str]:
    """The notes of guidances without effect that `notes` do not name yet."""
    return [effect.note for effect in effects if effect.note and not any(n.startswith(effect.name) for n in notes)]


class Measured(Guidance):
    """A guidance whose changes are added to an `Effect`."""

    def __init__(self, guidance: Guidance, effect: Effect) -> None:
        self.guidance, self.effect = guidance, effect
        self.stage = guidance.stage  # type: ignore[misc]

    @property
    def needs(self) -> tuple[str, ...]:
        return self.guidance.needs

    def branches(self, level: Level) -> tuple[str, ...]:
        return self.guidance.branches(level)

    def apply(self, prediction: Prediction, raw: Mapping[str, Prediction]) -> Prediction:
        after = self.guidance.apply(prediction, raw)
        self.effect.add(prediction, after)
        return after

    def fresh(self) -> Guidance:
        return Measured(self.guidance.fresh(), self.effect)
