"""The output folder of a comparison: claimed by what its runs share, so that it can be continued, and its tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ldm.evaluation.config import APPEARANCE, EvaluationConfig
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import atomic_write, atomic_write_json, read_json
from ldm.runtime.locks import is_begun
from ldm.runtime.schema import finite
from ldm.runtime.settings import from_mapping
from ldm.runtime.stopping import GOES_ON, kept_when_stopped
from ldm.runtime.text import printable
from ldm.sampling.config import SamplingConfig

_MANIFEST = "plan.json"
logger = logging.getLogger("ldm")
Record = TypeVar("Record")


def check_folder(folder: Path) -> None:
    """`UserError` for what exists and is not the folder of a comparison."""
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file", setting="output_dir", value=folder)
    begun = folder.is_dir() and all(is_begun(path.name, _MANIFEST) for path in folder.iterdir())
    if folder.is_dir() and not begun and not (folder / _MANIFEST).is_file():
        problem = "holds something else than a comparison"
        raise UserError(problem, remedy="choose another", setting="output_dir", value=folder)


def recorded_metrics(folder: Path, evaluation: EvaluationConfig) -> EvaluationConfig:
    """The settings for going on with a comparison from before images' appearance was measured: without it."""
    if not (folder / _MANIFEST).is_file() or not isinstance(content := read_json(folder / _MANIFEST), dict):
        return evaluation
    without = tuple(name for name in evaluation.metrics if name not in APPEARANCE)
    return replace(evaluation, metrics=without) if content.get("metrics") == list(without) else evaluation


def stored_sampling(folder: Path) -> SamplingConfig | None:
    """The sampling that all runs of the comparison in this folder start from; None of a new one."""
    if not (folder / _MANIFEST).is_file():
        return None
    content = read_json(folder / _MANIFEST)
    with user_errors(folder / _MANIFEST):
        return from_mapping(SamplingConfig, content.get("sampling", {}) if isinstance(content, dict) else None)


@contextmanager
def claimed_folder(folder: Path, manifest: Mapping[str, Any], processes: Processes = SINGLE_PROCESS) -> Iterator[None]:
    """Hold the folder of a comparison within the block; `UserError` if it is that of another, or another process has
    it."""
    with processes.lock(folder, "comparing"), kept_when_stopped(lambda: f"stopped; {GOES_ON}"):
        processes.run_on_main_and_broadcast(lambda: claim_folder(folder, manifest))
        yield


def claim_folder(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write what all runs of a comparison share; `UserError` if the folder is that of a comparison of another."""
    plain = json.loads(json.dumps(finite(manifest)))
    if not (folder / _MANIFEST).is_file():
        atomic_write_json(folder / _MANIFEST, plain)
        return
    stored = read_json(folder / _MANIFEST)
    differing = sorted(name for name in plain.keys() | stored.keys() if plain.get(name) != stored.get(name))
    if differing:
        problem = f"its comparison was made with another {', '.join(differing)}"
        raise UserError(problem, remedy="choose another folder", setting="output_dir", value=folder)


def load_record(path: Path, from_json: Callable[[object], Record]) -> Record | None:
    """The stored record of a run; None where the run is not done yet, or its record is damaged."""
    if not path.is_file():
        return None
    try:
        return from_json(read_json(path))
    except ValueError as error:  # UserError among them
        logger.warning("%s: damaged (%s), the run is measured again", path, printable(error, 120))
        return None


def write_tables(folder: Path, name: str, table: str, csv: str, result: Mapping[str, Any]) -> None:
    """NAME.txt, NAME.csv and at last NAME.json: with it the comparison is complete."""
    atomic_write(folder / f"{name}.txt", table + "\n")
    atomic_write(folder / f"{name}.csv", csv)
    atomic_write_json(folder / f"{name}.json", result)
