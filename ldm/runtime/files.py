"""Atomic files and folders: written under a temporary name, flushed, renamed. JSON, hashes, the cache folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

from safetensors import SafetensorError

from ldm.runtime import locks
from ldm.runtime.disk import full_disk, is_full
from ldm.runtime.errors import UserError
from ldm.runtime.schema import JSON_LIMIT, convert, finite, parse_json

Content = TypeVar("Content")


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: str | Path) -> io.BufferedReader:
    """A file that a user named, open for reading; `UserError` for a folder, a pipe or a device.

    Opening a pipe may wait without end, and reading a device such as /dev/zero does not end.
    """
    return open(path, "rb", opener=_open_regular)


def check_regular(path: str | Path) -> None:
    """`UserError` unless `path` is a regular file, for libraries that open it; OSError where it is absent."""
    _refuse_other_kinds(path, os.stat(path).st_mode)


def check_regular_folder(folder: str | Path) -> None:
    """`check_regular` of each entry of a folder but its sub-folders, for libraries that choose the files themselves."""
    for path in Path(folder).iterdir():
        if path.exists() and not path.is_dir():
            check_regular(path)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # which opens a pipe without waiting for its other end
    try:
        _refuse_other_kinds(path, os.fstat(descriptor).st_mode)
    except UserError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_other_kinds(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        raise UserError(f"{path}: {kinds.get(stat.S_IFMT(mode), 'a socket')}", remedy="expected a regular file")


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`; on success flush it and rename it to `target`, replacing the old one.

    On an exception the temporary folder is removed and `target` stays as it was.
    """
    target = Path(target).absolute()  # "." has no name
    target.parent.mkdir(parents=True, exist_ok=True)
    with locks.temporary(target, Path.mkdir) as folder:
        mode = folder.stat().st_mode
        with _system_errors(target, folder):
            yield folder
            for path in sorted(folder.rglob("*")):
                _as_umask(path, mode)
                fsync_path(path)
            fsync_path(folder)
        replace_folder(folder, target)


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; an old `target` is moved aside first and removed last."""
    if not target.exists():
        os.rename(source, target)
        fsync_path(target.parent)
        return
    old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
    with locks.locked(target):
        try:
            os.rename(target, old)
            os.rename(source, target)
        except BaseException:  # a signal, too, leaves one of them in place
            if old.exists() and not target.exists():
                os.rename(old, target)
            raise
        finally:
            if old.exists() and target.exists():
                fsync_path(target.parent)
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary file beside `path` to write to; on success flush it and rename it to `path`.

    A reader sees the old content or the new, never a part. On an exception `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.temporary(path, _new_file) as temporary:
        mode = temporary.stat().st_mode
        with _system_errors(path, temporary):
            yield temporary
            _as_umask(temporary, mode)
            fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)


def _as_umask(path: Path, mode: int) -> None:
    """Give a file the permissions that the umask gave another: safetensors makes its own for the owner alone."""
    if path.is_file() and not path.is_symlink():
        path.chmod(mode & 0o666)


def _new_file(path: Path) -> None:
    path.touch(exist_ok=False)


@contextmanager
def _system_errors(target: Path, temporary: Path) -> Iterator[None]:
    """What the system refuses while safetensors writes, as `OSError`; a full disk with the room on it."""
    try:
        with _safetensors_errors(target):
            yield
    except OSError as error:
        if not is_full(error):
            raise
        raise full_disk(error, target, temporary) from None


@contextmanager
def _safetensors_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from None


def is_there(path: Path) -> bool:
    """Whether anything has this name: a file, or a pipe or a broken link, which its reader refuses by name."""
    return os.path.lexists(path)


def atomic_write(path: str | Path, data: str | bytes) -> None:
    """Write `data` (text as UTF-8) to `path`, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; numbers that are not finite become null, for JSON has none."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(value), indent=2, ensure_ascii=False)
    atomic_write(path, text + "\n")


@overload
def read_json(path: str | Path, *, non_finite: bool = False) -> dict[str, Any]: ...
@overload
def read_json(path: str | Path, schema: type[Content], *, non_finite: bool = False) -> Content: ...
def read_json(path: str | Path, schema: Any = dict[str, Any], *, non_finite: bool = False) -> Any:
    """Read a JSON file as a `schema`, an object by default.

    `UserError` names the file, and the key where there is one, when it is absent, not a regular file, over 32 MiB,
    malformed (see `parse_json`, also about `non_finite`), or does not fit the schema.
    """
    path = Path(path)
    try:
        with open_regular(path) as stream:
            content = stream.read(JSON_LIMIT + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    try:
        value = parse_json(content, non_finite=non_finite)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    try:
        return convert(value, schema)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def log_entries(path: str | Path) -> Iterator[dict[str, Any]]:
    """The entries of a metrics.jsonl, in order: objects with a whole "step".

    Other lines are skipped, such as the last one of a killed training.
    """
    with open_regular(path) as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8", errors="replace"):
            try:
                entry = parse_json(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and type(entry.get("step")) is int:
                yield entry


def fingerprint(value: Any) -> str:
    """SHA-256 of `value` in canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_folder() -> Path:
    """`$LDM_CACHE`, else `guided-latents` in the user's cache folder."""
    if folder := os.environ.get("LDM_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guided-latents"
