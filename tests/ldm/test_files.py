"""Files are whole or absent: at no instant does a reader, or a crash, find half of one."""

import json
import os
import threading

import pytest
import torch

from ldm.comparison.image_grid import _read
from ldm.data.latent_layout import Layout, map_shard
from ldm.data.pixels import read_file
from ldm.reports.page import data_url
from ldm.runtime.errors import UserError
from ldm.runtime.files import (
    atomic_folder,
    atomic_write,
    atomic_write_json,
    fingerprint,
    log_entries,
    read_json,
    replace_folder,
    sha256_of_file,
)
from ldm.runtime.tensors import open_tensors, read_tensors, save_tensors, write_tensors
from ldm.runtime.text import suggest
from ldm.sampling.source_image import read_image


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.json"
    atomic_write_json(path, {"name": "é", "value": [1, 2.5, None]})
    assert read_json(path) == {"name": "é", "value": [1, 2.5, None]}
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    for step in ("fsync", "replace"):
        monkeypatch.setattr(os, step, fail)
        with pytest.raises(OSError, match="disk full"):
            atomic_write(path, "new")
        monkeypatch.undo()
        assert [entry.name for entry in path.parent.iterdir()] == ["file.json"] and path.read_bytes() == before
    with pytest.raises(TypeError):
        atomic_write_json(path, object())
    assert path.read_bytes() == before


def test_a_reader_sees_the_old_file_or_the_new(tmp_path):
    path, texts = tmp_path / "file", {"a" * 100_000, "b" * 100_000}
    atomic_write(path, "a" * 100_000)
    seen, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        atomic_write(path, "ab"[number % 2] * 100_000)
    stop.set()
    reader.join()
    assert seen and seen <= texts


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(os.path.isdir(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    atomic_write(tmp_path / "file", "x")
    assert order == [False, "rename", True], "the content, the name, the folder"


def test_permissions_are_those_of_any_new_file(tmp_path):
    mask = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", "x")
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "x").touch()
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_folder_appears_whole_and_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "deep" / "folder"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "new").write_text("2")
        raise RuntimeError
    assert [entry.name for entry in target.iterdir()] == ["old"]
    with atomic_folder(target) as folder:
        (folder / "new").write_text("2")
    assert [entry.name for entry in target.iterdir()] == ["new"]
    assert [entry.name for entry in target.parent.iterdir()] == ["folder"], "nothing is left beside it"


def test_a_folder_may_be_the_one_that_we_are_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_folder("out/") as folder:
        (folder / "x").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with atomic_folder(".") as folder:
        (folder / "x").touch()
    assert (tmp_path / "empty" / "x").exists() and (tmp_path / "out" / "x").exists()


def test_an_old_folder_goes_last(tmp_path, monkeypatch):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: kept.append(path))
    kept = []
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "new").exists() and (kept[0] / "old").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"nul"])
def test_what_is_not_json_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json: not valid JSON"):
        read_json(tmp_path / "x.json")


def test_json_that_is_not_there_or_too_large(tmp_path):
    with pytest.raises(UserError, match=r"x\.json: no such file"):
        read_json(tmp_path / "x.json")
    with open(tmp_path / "x.json", "wb") as stream:
        stream.truncate(2**26 + 1)  # sparse
    with pytest.raises(UserError, match="larger than 33554432 bytes"):
        read_json(tmp_path / "x.json")


def test_fingerprints_are_sha_256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint({"b": 1, "a": [1, 2]}) == fingerprint(json.loads('{"a": [1, 2], "b": 1}'))
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_suggestions():
    assert suggest("smaple", ["train", "sample"]) == 'known: sample, train; did you mean "sample"?'
    assert suggest("xyz", []) == "known: none"
    assert suggest("n7", (f"n{i}" for i in range(40))).count(",") == 30, "a long list is cut"


READERS = {
    "json": read_json,
    "log": lambda path: list(log_entries(path)),
    "hash": sha256_of_file,
    "weights": read_tensors,
    "header": lambda path: open_tensors(path).__enter__(),
    "image": read_file,
    "source": lambda path: read_image(path, 16),
    "report": data_url,
    "sample row": _read,
    "latents": lambda path: map_shard(path, Layout(1, (1, 1, 1), False, False), 0),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_only_regular_files_are_read(tmp_path, reader, kind):
    """A pipe would wait for its other end, and /dev/zero has no end."""
    path = tmp_path / "file"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=f"{kind}; expected a regular file"):
        READERS[reader](path)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_what_is_written_has_the_permissions_that_the_umask_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        atomic_write_json(tmp_path / "a.json", {})
        save_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(2)})
        with atomic_folder(tmp_path / "model") as folder:
            write_tensors(folder / "b.safetensors", {"w": torch.zeros(2)})
            (folder / "part").mkdir()
            write_tensors(folder / "part" / "c.safetensors", {"w": torch.zeros(2)})
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_equal_tensors_and_metadata_make_equal_files(tmp_path):
    """safetensors alone writes several entries of metadata in any order."""
    import torch
    from safetensors import safe_open

    from ldm.runtime.tensors import save_tensors

    metadata = {name: f"value of {name}, é" for name in "dacb"}
    for number in range(8):
        save_tensors(tmp_path / str(number), {"x": torch.arange(3.0)}, metadata)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == metadata and file.get_tensor("x").tolist() == [0, 1, 2]
