"""What surrounds a training: random states, signals, a full disk, and its budget of time."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ldm.runtime.disk import is_full, room_line
from ldm.runtime.distributed import Processes

logger = logging.getLogger("ldm")


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Give Python, NumPy and torch their global random states back at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def explain_full_disk(run: str, need: int) -> Iterator[None]:
    """While a run folder is written: the error of a full disk says what is left of the run, and the bytes it needs."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        text = f"{os.strerror(error.errno or 0)}; what was saved before is whole: make room ({room_line(run, need)}), "
        text += "and the same command goes on"
        raise OSError(error.errno, text, error.filename or run) from error


@contextmanager
def stop_signals() -> Iterator[dict[str, int]]:
    """Note SIGINT and SIGTERM instead of dying, so that the step in progress can be finished and saved."""
    received: dict[str, int] = {}
    owner = os.getpid()

    def note(number: int, _: object) -> None:
        if os.getpid() != owner:  # a data worker, which Ctrl-C reaches as well: its owner ends it
            return
        if received:
            raise KeyboardInterrupt
        received["signal"] = number
        logger.warning("stopping after this step (once more to stop at once)")

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Budget:
    """Seconds in training steps, without validation, previews and saving; all processes agree when it is spent."""

    def __init__(self, limit: float, processes: Processes, device: torch.device) -> None:
        self.limit, self.processes, self.device = limit, processes, device
        self.seconds = 0.0  # so far, in all parts of the run
        self.spent = False

    def resume(self, seconds: float) -> None:
        """Go on from a checkpoint, the same for all processes."""
        self.seconds, self.spent = seconds, 0 < self.limit <= seconds

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Add the time that is spent inside."""
        since = time.monotonic()
        yield
        self.seconds += time.monotonic() - since
        if self.limit:
            self.spent = self.processes.any(self.seconds >= self.limit, self.device)
