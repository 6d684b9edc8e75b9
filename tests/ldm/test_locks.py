"""A folder has one owner, and what a stopped or killed process was writing is never left over."""

import os
import signal
import time

import pytest

from ldm.cli.main import main
from ldm.runtime import locks
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_file, atomic_folder, atomic_write, replace_folder
from ldm.runtime.locks import FolderLock


def in_child(work, number=None):
    """Run `work` in a forked process, which `number` is sent to once it waits; its wait status."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        work(lambda: (os.write(told, b"."), time.sleep(60)))
        os._exit(0)
    os.read(ready, 1)
    if number is not None:
        os.kill(child, number)
    return child if number is None else os.waitpid(child, 0)[1]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write_file(folder, wait):
    with atomic_file(folder / "x.json") as path:
        path.write_text("half")
        wait()


def write_folder(folder, wait):
    with atomic_folder(folder / "x.json") as path:
        (path / "part").write_text("half")
        wait()


def hold(folder, wait):
    lock = FolderLock(folder, work="drawing")
    (folder / ".y.json.tmp-12345678").write_text("half")
    wait()
    lock.close()


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, write):
    in_child(lambda wait: write(tmp_path, wait), signal.SIGKILL)
    assert any(".x.json.tmp-" in name for name in names(tmp_path))
    atomic_write(tmp_path / "y.json", "another file")
    assert any(".x.json.tmp-" in name for name in names(tmp_path)), "only of the same name"
    atomic_write(tmp_path / "x.json", "whole")
    assert names(tmp_path) == ["x.json", "y.json"]


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_what_another_process_is_writing_is_left_alone(tmp_path, write):
    child = in_child(lambda wait: write(tmp_path, wait))
    atomic_write(tmp_path / "x.json", "whole")
    FolderLock(tmp_path, work="writing").close()
    assert any(".x.json.tmp-" in name for name in names(tmp_path))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_folder_has_one_owner_until_that_ends(tmp_path):
    child = in_child(lambda wait: hold(tmp_path / "out", wait))
    with pytest.raises(UserError, match="another process is drawing there"):
        FolderLock(tmp_path / "out", work="drawing")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert names(tmp_path) == ["out", "out/.lock", "out/.y.json.tmp-12345678"]
    FolderLock(tmp_path / "out", work="drawing").close()
    assert names(tmp_path) == ["out"], "which was there before"
    FolderLock(tmp_path / "new" / "out", work="drawing").close()
    assert names(tmp_path) == ["new", "out"], "and an empty folder that it made goes"


def test_a_folder_that_was_moved_aside_comes_back(tmp_path):
    (tmp_path / "out" / ".unet.old-12345678").mkdir(parents=True)
    (tmp_path / "out" / ".unet.old-12345678" / "weights").write_text("the only ones")
    FolderLock(tmp_path / "out", work="training").close()
    assert names(tmp_path) == ["out", "out/unet", "out/unet/weights"]


@pytest.mark.parametrize("instant", range(1, 9))
def test_a_signal_at_any_instant_leaves_the_old_folder_or_the_new(tmp_path, monkeypatch, instant):
    """Stopped at the n-th call to the file system that replaces a folder."""
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    calls = []

    def stop_at(real):
        def call(*arguments, **options):
            calls.append(real)
            if len(calls) == instant:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    for name in ("rename", "fsync", "open", "close"):
        monkeypatch.setattr(os, name, stop_at(getattr(os, name)))
    stopped = False
    try:
        replace_folder(tmp_path / "new", tmp_path / "old")
    except KeyboardInterrupt:
        stopped = True
    monkeypatch.undo()
    assert stopped == (instant <= len(calls))
    assert names(tmp_path / "old") in (["old"], ["new"])
    locks.remove_leftovers(tmp_path, ".*")
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_every_command_ends_alike_at_a_signal(tmp_path, monkeypatch, capfd, number):
    """One line and 128 + the signal, with nothing left, also where the file system was busy."""
    from ldm.cli import info

    def run(arguments):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "part").touch()
            signal.raise_signal(number)

    monkeypatch.setattr(info, "run", run)
    before = signal.getsignal(number)
    assert main(["info"]) == 128 + number
    assert capfd.readouterr().err == "ldm: stopped\n"
    assert names(tmp_path) == [] and signal.getsignal(number) == before
