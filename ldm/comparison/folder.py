"""The output folder of a comparison: claimed by what its parts have in common, so that they can be continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldm.evaluation.records import finite
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, read_json

PLAN = "plan.json"


def check_folder(folder: Path) -> None:
    """`UserError` for what exists and is not the folder of a comparison."""
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file", setting="output_dir", value=folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PLAN).is_file():
        raise UserError(
            "holds something else than a comparison", remedy="choose another", setting="output_dir", value=folder
        )


def claim(folder: Path, shared: dict[str, Any]) -> None:
    """Write what all parts of a comparison share, or make sure that those of the folder were made under the same."""
    plain = json.loads(json.dumps(finite(shared)))
    if not (folder / PLAN).is_file():
        atomic_write_json(folder / PLAN, plain)
        return
    there = read_json(folder / PLAN)
    differing = sorted(name for name in plain.keys() | there.keys() if plain.get(name) != there.get(name))
    if differing:
        raise UserError(
            f"its comparison was made with another {', '.join(differing)}",
            remedy="choose another folder",
            setting="output_dir",
            value=folder,
        )
