"""Two functions in turn, and the ratio of their times pair by pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_LEAST_MS, _QUICK_MS = 40.0, 2.0  # a shorter call is repeated until its measurement takes this long
_LONGEST_MS = 60_000.0


@dataclass(frozen=True)
class Paired:
    """Milliseconds a call (or bytes, of memory) in the order of measuring: `ours[i]` beside `theirs[i]`."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def summary(self) -> dict[str, float]:
        """Medians, and the median, 10th and 90th percentile of the paired ratios."""
        ratios = sorted(self.ratios)
        return {
            "ours": statistics.median(self.ours),
            "theirs": statistics.median(self.theirs),
            "ratio": statistics.median(ratios),
            "ratio_p10": percentile(ratios, 0.1),
            "ratio_p90": percentile(ratios, 0.9),
        }


def percentile(values: list[float], share: float) -> float:
    """Linear between the two nearest of the sorted values."""
    position = share * (len(values) - 1)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (position - low) * (values[high] - values[low])


Clock = Callable[[Callable[[], Any], int], float]


def clock(device: torch.device, *, host: bool = False) -> Clock:
    """Milliseconds a call of a function that is called so many times.

    On one thread of a CPU the processor time of the process counts, which other processes hardly disturb; on several,
    and for the host's side of a GPU, the wall's; for a GPU's work its own events.
    """
    if device.type == "cuda" and not host:
        return _events
    now = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def timed(function: Callable[[], Any], calls: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = now()
        for _ in range(calls):
            function()
        return (now() - start) * 1e3 / calls

    return timed


def _events(function: Callable[[], Any], calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / calls


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], timed: Clock, repeats: int, *, quick: bool) -> Paired:
    """`repeats` pairs, fewer (3 at least) where they would take more than a minute; the order alternates."""
    least, calls, taken = _QUICK_MS if quick else _LEAST_MS, [], 0.0
    for function in (ours, theirs):
        first = timed(function, 1)  # what is made at the first call is not measured
        milliseconds = first if first > 10 * least else timed(function, 2)
        calls.append(max(1, round(least / max(milliseconds, 1e-3))))
        taken += calls[-1] * milliseconds
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(min(repeats, max(3, int(_LONGEST_MS / max(taken, 1e-3))))):
        for side in (0, 1) if repeat % 2 == 0 else (1, 0):
            times[side].append(timed((ours, theirs)[side], calls[side]))
    return Paired(*times)
