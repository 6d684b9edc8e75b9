"""The bar of a training on a terminal, and its lines elsewhere."""

import io
import logging
import sys
import time

import pytest

from ldm.runtime.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_words_stand_beside_the_count(terminal, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "ldm")
    screen, words = Terminal() if terminal else io.StringIO(), iter(["", "loss 0.5", "loss 0.25", "loss 0.25"])
    monkeypatch.setattr(sys, "stderr", screen)
    items = []
    for item in progress(range(2, 6), "train x", total=6, initial=2, every=0.0, postfix=lambda: next(words)):
        items.append(item)
        time.sleep(0.12)  # above tqdm's least interval
    assert items == [2, 3, 4, 5]
    if terminal:
        last = screen.getvalue().split("\r")[-1]
        assert last.startswith("train x: 100%") and "6/6" in last and "loss 0.25" in last
        assert "loss 0.5" in screen.getvalue() and not caplog.messages
    else:
        assert [line.split(",")[0] for line in caplog.messages] == [f"train x: {count} of 6" for count in (3, 4, 5)]
        assert "s left" in caplog.messages[0] and caplog.messages[1].endswith("s left, loss 0.5")
