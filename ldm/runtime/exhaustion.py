"""The machine runs out of memory, or kills a process for it: one line with what to lower, in place of a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_ALLOCATORS = ("DefaultCPUAllocator", "CUDA out of memory", "not enough memory", "Cannot allocate memory")
_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)")


class ExhaustedError(RuntimeError):
    """The machine could not give what the work needs."""


def exhausted(error: BaseException) -> str:
    """What an error says is used up, "" where it is about something else. It asks for no module of torch."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory"
    if not isinstance(error, RuntimeError):
        return ""
    if any(name in text for name in _ALLOCATORS):
        return "out of memory"
    if worker := _WORKER.search(text):
        why = f"killed by signal {worker[1].strip()}" if worker[1] else "ended from outside"
        return f"a process that loads images was {why}, as the system does when memory is short"
    return ""


@contextmanager
def explain_exhaustion(remedy: str) -> Iterator[None]:
    """Raise what is used up as `ExhaustedError` with this remedy; the tensors of the failed call are let go."""
    try:
        yield
    except Exception as error:
        if not (problem := exhausted(error)):
            raise
    else:
        return
    raise ExhaustedError(f"{problem}; {remedy}")
