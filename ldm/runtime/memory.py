"""The peak memory of a block of code, and a limit for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """`with PeakMemory(device) as peak: ...`; then `peak.bytes`, above the memory in use before, or None if unknown.

    On CUDA from torch's statistics. On a CPU it is unknown: the peak of a process depends on what ran in it before, for
    freed memory is used again, so the first of several blocks would have the highest.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._before = device, 0
        self.bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before


def _status(name: str) -> int:
    """A line of the kernel's status of this process, in bytes; 0 where it is not there."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


@contextlib.contextmanager
def bounded_memory(extra: int) -> Iterator[Callable[[], None]]:
    """`MemoryError` where this process takes over `extra` bytes more than it holds: for libraries of unknown need.

    The function that is given counts from now on instead, so that what is kept of a long reading does not add up. The
    kernel holds the limit (Linux; elsewhere there is none).
    """
    try:
        import resource

        before = resource.getrlimit(resource.RLIMIT_DATA)
    except (ImportError, AttributeError, OSError):
        yield lambda: None
        return

    def renew() -> None:
        used, (soft, hard) = _status("VmData"), before
        limit = used + extra if soft == resource.RLIM_INFINITY else min(soft, used + extra)
        if used:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))

    renew()
    try:
        yield renew
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
