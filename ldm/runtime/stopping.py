"""Signals that stop a command: SIGTERM stops it as SIGINT does, and what is finished is kept."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GOES_ON = "the same command goes on from there"


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM stopped the work; the text says what of it is kept."""

    def __init__(self, signal_number: int, text: str = "stopped") -> None:
        super().__init__(text)
        self.signal_number = signal_number


@contextmanager
def interrupting_signals() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise `Interrupted`; a signal that was ignored before stays so.

    Outside the main thread, which alone receives signals, nothing changes.
    """
    owner = os.getpid()

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() == owner:
            raise Interrupted(number)
        signal.signal(number, signal.SIG_DFL)  # a forked data worker: it ends, and has nothing to keep
        os.kill(os.getpid(), number)

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                previous[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def kept_when_stopped(text: Callable[[], str]) -> Iterator[None]:
    """Give a stop within the block the `text` of what is kept, unless an inner block has given its own."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if isinstance(stop, Interrupted) and str(stop) != "stopped":
            raise
        raise Interrupted(getattr(stop, "signal_number", signal.SIGINT), text()) from None
