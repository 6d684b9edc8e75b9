"""Pictures that are written in threads: the same bytes, none missing, and the first failure is told."""

import threading
import time

import pytest
import torch

from ldm.runtime import images
from ldm.runtime.images import PngWriter, save_png, to_pil


def pictures(count):
    return torch.randn(count, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def test_the_bytes_are_those_of_one_thread(tmp_path):
    made = pictures(40)
    with PngWriter(threads=3, waiting=5) as writer:
        for number, image in enumerate(made):
            writer.save(image, tmp_path / f"{number}.png", {"ldm": f"{number} <é>"})
    for number, image in enumerate(made):
        save_png(to_pil(image), tmp_path / "alone.png", {"ldm": f"{number} <é>"})
        assert (tmp_path / f"{number}.png").read_bytes() == (tmp_path / "alone.png").read_bytes()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("png")]


def test_at_most_so_many_wait(tmp_path, monkeypatch):
    begun, gate = [], threading.Event()
    monkeypatch.setattr(images, "save_png", lambda *given: (begun.append(1), gate.wait(20)))
    with PngWriter(threads=1, waiting=2) as writer:
        for image in pictures(2):
            writer.save(image, tmp_path / "x.png")
        third = threading.Thread(target=writer.save, args=(pictures(1)[0], tmp_path / "x.png"))
        third.start()
        time.sleep(0.1)
        assert third.is_alive() and len(begun) == 1, "it waits for room"
        gate.set()
        third.join(20)
        assert not third.is_alive()
    assert len(begun) == 3


def test_the_first_failure_is_raised_and_the_rest_is_left(tmp_path, monkeypatch):
    whole = images.save_png
    slow = threading.Event()

    def failing(image, path, text=None):
        if path.name in ("3.png", "5.png"):
            if path.name == "3.png":
                slow.wait(20)  # fails later than the fifth, and yet is told
            raise OSError(28, f"No space left for {path.name}")
        slow.set() if path.name == "6.png" else None
        whole(image, path, text)

    monkeypatch.setattr(images, "save_png", failing)
    with pytest.raises(OSError, match=r"3\.png"), PngWriter(threads=3, waiting=100) as writer:
        for number, image in enumerate(pictures(60)):
            writer.save(image, tmp_path / f"{number}.png")
    with pytest.raises(KeyboardInterrupt), PngWriter(threads=1) as writer:
        for image in pictures(9):
            writer.save(image, tmp_path / "late.png")
        raise KeyboardInterrupt
