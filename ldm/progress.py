"""Progress bars on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
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
    beside: Callable[[], str] = str,
) -> Iterator[Item]:
    """Yield `items`, showing a tqdm bar on a terminal and otherwise a log line at most every `every` seconds.

    `beside` gives words to show with the count; it is asked after each item and must be quick.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        bar, shown = tqdm(items, desc=label, total=total, initial=initial, dynamic_ncols=True), ""
        for item in bar:
            yield item
            if (words := beside()) != shown:
                shown = words
                bar.set_postfix_str(words, refresh=False)
        return
    start = last = time.monotonic()
    count = initial
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= every and count != total:
            last = now
            rate = (count - initial) / (now - start)
            left = f", {(total - count) / rate:.0f} s left" if total else ""
            words = f", {words}" if (words := beside()) else ""
            logger.info("%s: %d%s, %.1f a second%s%s", label, count, f" of {total}" if total else "", rate, left, words)
