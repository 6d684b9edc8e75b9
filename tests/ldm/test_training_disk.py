"""A disk that is full while a run is saved: one line, no half folder, the checkpoint before loads and goes on."""

import errno
import json
import os
import shutil
import subprocess

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from ldm.runtime import disk
from ldm.runtime.files import atomic_folder, atomic_write
from ldm.training import loop
from ldm.training.checkpoint import checkpoints, damage

EVERY = ["--checkpointing-steps", 2, "--checkpoints-total-limit", 99, "--dropout", 0.1]
STEPS = 8


def state(run):
    last = run / f"checkpoint-{STEPS}"
    return {path.name: {k: v.tolist() for k, v in load_file(path).items()} for path in last.glob("*.safetensors")}


def losses(run):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


def nothing_half(run):
    assert not [path for path in run.rglob("*") if ".tmp-" in path.name or ".old-" in path.name]
    found = checkpoints(run)
    assert found and all(damage(path) is None for path in found)
    return len(found)


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """A run that was left alone."""
    from ldm.cli.main import main

    run = tmp_path_factory.mktemp("disk") / "whole"
    assert main(models.command("classifier", run, *EVERY, steps=STEPS)) == 0
    return run


def refuse_from(monkeypatch, call, limit):
    """From the `limit`-th time on, this call of the system (or of safetensors) finds no room."""
    count, full = 0, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if call == "safetensors":
        full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    module, name = {
        "safetensors": ("ldm.runtime.tensors", "save_file"),
        "fsync": ("os", "fsync"),
    }[call]
    real = getattr(__import__(module, fromlist=[name]), name)

    def refuse(*arguments, **options):
        nonlocal count
        count += 1
        if count > limit:
            raise full
        return real(*arguments, **options)

    monkeypatch.setattr(f"{module}.{name}", refuse)


@pytest.mark.parametrize(("call", "limit"), [("safetensors", 4), ("fsync", 81)])
def test_no_room_for_a_checkpoint(models, ldm, whole, tmp_path, monkeypatch, call, limit):
    run, arguments = tmp_path / "run", models.command("classifier", tmp_path / "run", *EVERY, steps=STEPS)
    with monkeypatch.context() as patch:
        refuse_from(patch, call, limit)
        found = ldm(*arguments)
    assert found.code == 1 and found.err.count("\n") == 1, found.err
    assert "No space left on device; what was saved before is whole" in found.err
    assert " needed, " in found.err and f" free on the disk of {run}" in found.err
    assert 0 < nothing_half(run) < STEPS // 2
    assert ldm(*arguments).code == 0
    assert state(run) == state(whole) and losses(run) == losses(whole)


def test_a_disk_that_is_really_full(models, ldm, whole, tmp_path, monkeypatch):
    """A file system in memory with room for two checkpoints and what is beside them, but not for four, as if others had
    filled it meanwhile."""
    monkeypatch.setattr(loop, "check_free", lambda *_: None)
    disk = tmp_path / "disk"
    disk.mkdir()
    each = sum(path.stat().st_size for path in (whole / "checkpoint-2").iterdir())
    rest = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) - 4 * each
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(rest + 3.5 * each) // 1024}k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        run, arguments = disk / "run", models.command("classifier", disk / "run", *EVERY, steps=STEPS)
        found = ldm(*arguments)
        assert found.code == 1 and found.err.count("\n") == 1, found.err
        assert "No space left on device; what was saved before is whole" in found.err
        assert 0 < nothing_half(run) < 4
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True, capture_output=True)
        assert ldm(*arguments).code == 0
        assert state(run) == state(whole) and losses(run) == losses(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True, capture_output=True)


def test_room_is_looked_at_before_anything_is_made(models, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 10_000)
    command = models.command("classifier", tmp_path / "run", *EVERY, steps=STEPS)
    refused(
        command, "its checkpoints need about", f"the disk of {tmp_path / 'run'} has 10 kB free", "lower --checkpoints-"
    )


def test_the_room_that_is_asked_for_is_what_the_run_takes(models, ldm, tmp_path, monkeypatch):
    needs = []
    monkeypatch.setattr(loop, "check_free", lambda folder, need, *_: needs.append(need))
    run = tmp_path / "run"
    flags = ("--checkpointing-steps", 2, "--checkpoints-total-limit", 3, "--ema-lengths", 0.1)
    assert ldm(*models.command("diffusion", run, *flags, steps=6)).code == 0
    taken = sum(path.stat().st_size for path in run.rglob("*.safetensors"))
    one = sum(path.stat().st_size for path in (run / "checkpoint-6").iterdir())
    assert taken * 0.8 < needs[0] < (taken + one) * 1.2
    assert ldm(*models.command("diffusion", run, *flags, steps=6)).code == 0 and needs[1] == 0, "nothing is left to do"


def test_a_full_disk_is_named_with_its_room_wherever_a_file_is_written(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device after 5 kB of it \(.* free on the disk of {tmp_path}"):
        atomic_write(tmp_path / "file", b"x" * 5000)
    with (
        pytest.raises(OSError, match="No space left on device after 7 kB of it"),
        atomic_folder(tmp_path / "out") as out,
    ):
        (out / "a").write_bytes(b"x" * 7000)
    assert not list(tmp_path.iterdir())
