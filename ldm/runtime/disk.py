"""Room on disks: looked at before work begins, and named where it ends."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from ldm.runtime.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: OSError) -> bool:
    """Whether an error is that of a full disk or a used-up quota."""
    return error.errno in _FULL


def free_bytes(folder: str | Path) -> int:
    """Free bytes of the disk that a folder, which may not be there yet, is or will be on."""
    return shutil.disk_usage(_existing(folder)).free


def check_free(folder: str | Path, need: int, what: str, remedy: str = "make room, or name another folder") -> None:
    """`UserError` where `what` needs more bytes than the disk of the folder has free."""
    free = free_bytes(folder)
    if need > free:
        problem = f"{what} need about {in_words(need)}, and the disk of {folder} has {in_words(free)} free"
        raise UserError(problem, remedy=remedy)


def room_line(folder: str | Path, need: int = 0) -> str:
    """`12 MiB free on the disk of runs/a`, with what is needed there if it is known."""
    text = f"{in_words(free_bytes(folder))} free on the disk of {folder}"
    return f"about {in_words(need)} needed, {text}" if need else text


def full_disk(error: OSError, target: Path, written: Path) -> OSError:
    """The same error with the disk, and with how much of the target was written, at `written`, when it was full."""
    size = sum(path.stat().st_size for path in [written, *written.rglob("*")] if path.is_file())
    text = f"{os.strerror(error.errno or 0)} after {in_words(size)} of it ({room_line(target.parent)})"
    return OSError(error.errno, text, str(target))


def in_words(size: int) -> str:
    """12 kB, 3.4 MB, 5 GB."""
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def _existing(folder: str | Path) -> Path:
    path = Path(folder).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
