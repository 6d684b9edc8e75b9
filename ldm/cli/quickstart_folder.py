"""The folder of a quick start: `quickstart.json` when it is done, `unfinished.json` until then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.runtime.errors import UserError
from ldm.runtime.files import read_json
from ldm.runtime.locks import is_begun

RESULT, UNFINISHED, REPORT = "quickstart.json", "unfinished.json", "report.html"
RUNS = ("autoencoder", "diffusion", "classifier")


def check_folder(root: Path) -> None:
    """`UserError` for what exists and is not the folder of a quick start."""
    if root.exists() and not root.is_dir():
        raise UserError(f"--output-dir {root}: is a file; give a new or empty folder")
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    if not all(is_begun(name, UNFINISHED) for name in names) and not is_quickstart(root):
        raise UserError(f"--output-dir {root}: holds something else; give a new or empty folder")


def is_quickstart(root: Path) -> bool:
    """Whether a folder is that of a quick start, finished or not."""
    return any(read_object(root / name).get("kind") == "quickstart" for name in (UNFINISHED, RESULT))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file."""
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def finished_result(root: Path, num_images: int, steps: int) -> dict[str, Any] | None:
    """The result of a quick start of these settings that came to its end; None where something is to be done."""
    result = read_object(root / RESULT)
    settings = result.get("settings") or {}
    same = (settings.get("num_images"), settings.get("num_inference_steps")) == (num_images, steps)
    return result if same and (root / REPORT).is_file() and not (root / UNFINISHED).is_file() else None


def result_of(root: Path) -> dict[str, Any]:
    """The content of quickstart.json; `UserError` where the quick start has not come to its end."""
    result = read_object(root / RESULT)
    if "rows" not in result:
        raise UserError(f"{root}: this quick start is not finished", remedy="its command goes on from there")
    return result


def describe(root: Path) -> Iterator[str]:
    """Lines for `ldm info`: what is finished, and the table."""
    unfinished = (root / UNFINISHED).is_file() or "rows" not in read_object(root / RESULT)
    command = read_object(root / (UNFINISHED if unfinished else RESULT)).get("command", "ldm quickstart")
    yield f"quick start: {'not finished; goes on by' if unfinished else 'finished;'} {command}"
    if unfinished:
        seconds = read_object(root / UNFINISHED).get("seconds") or {}
        for stage in seconds:
            yield f"done: {stage}"
        return
    for row in read_object(root / RESULT)["rows"]:
        shares = [
            f"{name} {row[name]:.1%}" for name in ("shape", "colour", "background", "red") if row[name] is not None
        ]
        yield f"{row['title']}: {', '.join(shares)}"
    if (root / REPORT).is_file():
        yield f"report: {root / REPORT}"
