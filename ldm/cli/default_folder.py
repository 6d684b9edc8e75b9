"""Where a command writes unless `--output-dir` says so: the next free folder such as samples/MODEL-2."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ldm.runtime.errors import UserError


def default_folder(kind: str, name: str, goes_on: Callable[[Path], bool] = lambda folder: False) -> str:
    """`KIND/NAME-n` under the current folder, n one above those that are there.

    The newest that is there is taken where the command `goes_on` with what it holds, as one that was stopped does.
    """
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
    pattern = re.compile(re.escape(name) + r"-(\d{1,9})")
    numbers = [int(match[1]) for path in Path(kind).glob("*") if (match := pattern.fullmatch(path.name))]
    newest = max(numbers, default=0)
    if newest and goes_on(Path(kind, f"{name}-{newest}")):
        return f"{kind}/{name}-{newest}"
    return f"{kind}/{name}-{newest + 1}"


def name_of(folder: str) -> str:
    """The last part of the path of a model or run folder."""
    return Path(folder).resolve().name


def check_single(processes: int) -> None:
    """`UserError` where several processes would each choose a folder."""
    if processes > 1:
        raise UserError("several processes need one", remedy="name it", setting="output_dir")
