"""Locks of folders and of temporary files, which end with their process however that ends.

A temporary file or folder is `.NAME.tmp-XXXXXXXX` beside what it becomes, and locked while it is written. One that is
not locked was left by a killed process: whoever writes there next removes it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import glob
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.runtime.errors import UserError

LOCK = ".lock"
_LEFTOVER = re.compile(r"\.(.+)\.(tmp|old)-(?:[a-z0-9_]{8}|\d+)")  # a name of others is no leftover of ours
_descriptors: set[int] = set()  # of all locks of this process
_folders: set[Path] = set()  # that this process has locked
_temporaries: set[Path] = set()  # that this process is writing
logger = logging.getLogger("ldm")


def _forget() -> None:
    """A forked data worker holds nothing: it can outlive a killed process by seconds."""
    for descriptor in _descriptors:
        os.close(descriptor)
    for held in (_descriptors, _folders, _temporaries):
        held.clear()


os.register_at_fork(after_in_child=_forget)


class FolderLock:
    """A folder that this process alone writes to, from now until `close`. What killed processes left is removed.

    `UserError` while another process has it. `close` removes the lock's file, and the folder if it was made here and
    nothing is in it.
    """

    def __init__(self, folder: str | Path, *, work: str, setting: str = "output_dir") -> None:
        self.folder, self._owned = Path(folder), False
        self._made = not self.folder.exists()
        try:
            self._take(setting, work)
            _folders.add(self.folder.absolute())
            for pattern in ("", "*/"):
                remove_leftovers(self.folder, f"{pattern}.*")
        except BaseException:  # a signal, too
            self.close()
            raise

    def _take(self, setting: str, work: str) -> None:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._descriptor = _open(self.folder / LOCK, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:  # removed by the process that had it
                continue
            self._owned = _lock(self._descriptor)
            if not self._owned:
                _close(self._descriptor)
                if not setting:
                    raise UserError(f"another process is {work}", remedy="wait for it")
                problem, remedy = f"another process is {work} there", "wait for it or choose another folder"
                raise UserError(problem, remedy=remedy, setting=setting, value=self.folder)
            if self._holds():
                break
            _close(self._descriptor)

    def close(self) -> None:
        """Release the folder."""
        if not self._owned:
            return
        self._owned = False
        _folders.discard(self.folder.absolute())
        if self._holds():
            (self.folder / LOCK).unlink(missing_ok=True)
        _close(self._descriptor)
        if self._made:
            with contextlib.suppress(OSError):  # it holds something
                self.folder.rmdir()

    def _holds(self) -> bool:
        """Whether the lock is of the file that is there now, not of one that was removed meanwhile."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.folder / LOCK))
        except OSError:
            return False

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_begun(name: str, *files: str) -> bool:
    """Whether a name in a folder is that of a lock, or of a temporary of these files: what an early kill leaves."""
    match = _LEFTOVER.fullmatch(name)
    return name == LOCK or (match is not None and match[1] in files)


@contextmanager
def temporary(target: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A temporary beside `target`, made by `make` and locked; at the end it is removed if it still has its name."""
    if target.absolute().parent not in _folders:  # where there are none: they were removed when it was locked
        remove_leftovers(target.parent, f".{glob.escape(target.name)}")
    path = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    _temporaries.add(path.absolute())  # before it is made: a signal may come at any instant
    try:
        make(path)
        with locked(path):
            yield path
    finally:
        remove(path)
        _temporaries.discard(path.absolute())


@contextmanager
def locked(path: Path, *, seconds: float = 0, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder, or share it; if another process has it still after so long, do without."""
    descriptor = _open(path, os.O_RDONLY)
    try:
        deadline = time.monotonic() + seconds
        while not _lock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield
    finally:
        _close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove temporaries of killed processes; bring back a folder that was moved aside for a new one that never came.

    `pattern` is what stands before `.tmp-` and `.old-`.
    """
    for path in [*folder.glob(f"{pattern}.tmp-*"), *folder.glob(f"{pattern}.old-*")]:
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        with contextlib.suppress(FileNotFoundError, PermissionError):
            descriptor = _open(path, os.O_RDONLY)
            try:
                if not _lock(descriptor):
                    continue
                target = path.with_name(match[1])
                if match[2] == "old" and not target.exists():
                    os.rename(path, target)
                else:
                    remove(path)
            finally:
                _close(descriptor)


@atexit.register
def remove_own() -> None:
    """Remove what this process was writing when a signal stopped it between two instructions."""
    for path in list(_temporaries):
        remove(path)
        _temporaries.discard(path)


def _open(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o666)
    _descriptors.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    if descriptor in _descriptors:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether this process has the lock now; without one where the file system has none."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        logger.debug("this file system has no locks (%s)", error.strerror)
    return True
