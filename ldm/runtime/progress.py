"""Progress bars on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
logger = logging.getLogger("ldm")


def progress(
    items: Iterable[Item],
    label: str,
    *,
    total: int | None = None,
    initial: int = 0,
    every: float = 10.0,
    postfix: Callable[[], str] = str,
) -> Iterator[Item]:
    """Yield `items` under a tqdm bar on a terminal, otherwise with a log line at most every `every` seconds.

    `postfix` returns a text to print after the count. It is called after each item and must be fast.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        bar, text = tqdm(items, desc=label, total=total, initial=initial, dynamic_ncols=True), ""
        for item in bar:
            yield item
            if (new := postfix()) != text:
                text = new
                bar.set_postfix_str(text, refresh=False)
        return
    start = last = time.monotonic()
    count = initial
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= every and count != total:
            last = now
            speed = (count - initial) / (now - start)
            left = f", {(total - count) / speed:.0f} s left" if total else ""
            text = f", {text}" if (text := postfix()) else ""
            logger.info("%s: %d%s, %.1f a second%s%s", label, count, f" of {total}" if total else "", speed, left, text)


class CostProgress:
    """One bar for work of several parts: `done` of `total` units of cost; `total` may change.

    On a terminal a tqdm bar, elsewhere a log line at most every `every` seconds; neither if not `enabled`.
    """

    def __init__(self, enabled: bool = True, every: float = 10.0) -> None:
        self.total, self.done, self.label = 0.0, 0.0, ""
        self._every, self._start = every, time.monotonic()
        self._last, self._logs = self._start, enabled and not sys.stderr.isatty()
        form = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
        self._bar = tqdm(total=0, bar_format=form, dynamic_ncols=True) if enabled and not self._logs else None

    def __enter__(self) -> CostProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, units: float) -> None:
        """Add `units` to `done`, for the part that `label` names."""
        self.done += units
        now = time.monotonic()
        if self._bar is not None:
            self._bar.total = max(self.total, self.done)
            self._bar.set_description_str(self.label, refresh=False)
            self._bar.update(units)
        elif self._logs and now - self._last >= self._every and 0 < self.done < self.total:
            self._last = now
            left = (now - self._start) * (self.total - self.done) / self.done
            logger.info("%s: %.0f %% of all, %.0f s left", self.label, 100 * self.done / self.total, left)
