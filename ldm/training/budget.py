"""A training's budget of time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator

from ldm.training.processes import on_any_process


class Budget:
    """Seconds in training steps, without validation, previews and saving; all processes agree when it is spent."""

    def __init__(self, limit: float, accelerator: Accelerator) -> None:
        self.limit, self.accelerator = limit, accelerator
        self.seconds = 0.0  # so far, in all parts of the run
        self.spent = False

    def resume(self, seconds: float) -> None:
        """Go on from a checkpoint, the same for all processes."""
        self.seconds, self.spent = seconds, 0 < self.limit <= seconds

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time of what is done inside."""
        since = time.monotonic()
        yield
        self.seconds += time.monotonic() - since
        if self.limit:
            self.spent = on_any_process(self.seconds >= self.limit, self.accelerator)
