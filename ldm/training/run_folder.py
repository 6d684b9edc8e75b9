"""A run folder: one owner at a time, its settings, its metrics, its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import IO, Any, TypeVar

from ldm.conditioning.config import ConditioningConfig
from ldm.data.config import DataConfig
from ldm.reports.history import RunRecord
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write, atomic_write_json, log_entries, read_json
from ldm.runtime.locks import LOCK, FolderLock, is_begun
from ldm.runtime.schema import finite
from ldm.runtime.settings import read_settings
from ldm.sampling.model_manifest import MANIFEST

RUN_FILE, _METRICS = "run.json", "metrics.jsonl"
_FILES = {RUN_FILE, _METRICS, LOCK, MANIFEST, "config.yaml", "conditioning.json", "model_index.json", "wandb.json"}
_FOLDERS = {"samples", "averages", "evaluations", "best", "logs", "latents", "codes"}
_FOLDERS |= {"vae", "unet", "scheduler", "text_encoder", "tokenizer", "classifier", "prior", "generator"}
_CHECKPOINT = re.compile(r"checkpoint-\d+")
Settings = TypeVar("Settings")


class RunFolder:
    """`--output-dir` of one training. Claiming it locks it until the process ends or `close` is called."""

    def __init__(self, path: Path, lock: FolderLock) -> None:
        self.path = path
        self._lock = lock
        self._metrics: IO[str] | None = None
        self.at_end = contextlib.ExitStack()
        """What is to be closed with the folder."""

    @classmethod
    def check(cls, path: str | Path, kind: str) -> None:
        """Refuse a path that holds something else than a run of this kind, before anything is made."""
        path = Path(path)
        if not path.exists():
            return
        if not path.is_dir():
            raise _refusal(path, "is a file; give a new or empty folder")
        if not (path / RUN_FILE).is_file():
            if not all(is_begun(entry.name, RUN_FILE) for entry in path.iterdir()):
                raise _refusal(path, "holds something else; give a new or empty folder")
            return
        _check_kinds(path)
        try:
            stored = read_run(path)["kind"]
        except UserError as error:
            raise _refusal(path, f"its {RUN_FILE} is not that of a run ({error}); give a new or empty folder") from None
        if stored != kind:
            raise _refusal(path, f"holds a run of `train {stored}`, not of `train {kind}`")

    @classmethod
    def claim(
        cls, path: str | Path, kind: str, settings: str, fingerprint: dict[str, Any], command: str = ""
    ) -> RunFolder:
        """Open or make the folder, lock it and store `settings` (YAML text) and `fingerprint` (a resume has the same).

        `command` joins those that the run was started by before.
        """
        path = Path(path)
        cls.check(path, kind)
        lock = FolderLock(path, work="training")
        run = cls(path, lock)
        try:
            commands = []
            if (path / RUN_FILE).exists():
                run._refuse_other_settings(fingerprint)
                commands = commands_of(path)
            commands = [earlier for earlier in commands if earlier != command] + ([command] if command else [])
            content = {"kind": kind, "commands": commands, "facts": fingerprint}
            atomic_write_json(path / RUN_FILE, content)  # first: with it the folder is a run's
            atomic_write(path / "config.yaml", settings)
        except BaseException:
            run.close()
            raise
        return run

    def _refuse_other_settings(self, fingerprint: dict[str, Any]) -> None:
        stored = flat(read_run(self.path)["facts"])
        current = flat(json.loads(json.dumps(fingerprint)))
        differing = [name for name in sorted({*stored, *current}) if stored.get(name) != current.get(name)]
        if differing:
            listed = "; ".join(f"{name} was {stored.get(name)!r}, is {current.get(name)!r}" for name in differing[:8])
            listed += f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
            raise _refusal(self.path, f"its run has other settings ({listed}); give another folder")

    def start_metrics(self, step: int) -> None:
        """Open metrics.jsonl for appending, having dropped every line after `step` and any half-written one."""
        lines = [json.dumps(entry) + "\n" for entry in self._entries() if entry["step"] <= step]
        atomic_write(self.path / _METRICS, "".join(lines))
        self._metrics = open(self.path / _METRICS, "a", encoding="utf-8")  # noqa: SIM115

    def last_step(self) -> int:
        """The last step in metrics.jsonl, which a killed run did not come to save; 0 if there is none."""
        return max((entry["step"] for entry in self._entries()), default=0)

    def last_measures(self) -> dict[str, Any]:
        """The results of the last validation and the last evaluation, as logged; {} if there was none."""
        measures: dict[str, Any] = {}
        for what in ("validation", "evaluation"):
            measures |= ([{}] + [entry[what] for entry in self._entries() if what in entry])[-1]
        return measures

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation of this step stands in metrics.jsonl."""
        return any(entry["step"] == step and "evaluation" in entry for entry in self._entries())

    def _entries(self) -> list[dict[str, Any]]:
        path = self.path / _METRICS
        return list(log_entries(path)) if path.exists() else []

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; numbers that are not finite become null, for JSON has none."""
        assert self._metrics is not None, "start_metrics comes first"
        self._metrics.write(json.dumps(finite(entry), allow_nan=False) + "\n")
        self._metrics.flush()

    def sync_metrics(self) -> None:
        """Flush the metrics to the disk, before a checkpoint that vouches for them."""
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())

    def close(self) -> None:
        """Release the folder."""
        self.at_end.close()
        try:
            if self._metrics is not None:
                self._metrics.close()
        finally:
            self._lock.close()


def _check_kinds(path: Path) -> None:
    """`UserError` for a folder where the run has a file, and the other way round: it writes and removes neither."""
    for entry in sorted(path.iterdir()):
        has_folder = entry.name in _FOLDERS or _CHECKPOINT.fullmatch(entry.name)
        if has_folder and not entry.is_dir():
            raise _refusal(path, f"{entry.name} in it is a file, where a run has a folder; move it elsewhere")
        if entry.name in _FILES and entry.is_dir():
            raise _refusal(path, f"{entry.name} in it is a folder, where a run has a file; move it elsewhere")


def _refusal(path: Path, problem: str) -> UserError:
    return UserError(problem, setting="output_dir", value=path)


def read_run(run: str | Path) -> RunRecord:
    """The run.json of a run folder."""
    return read_json(Path(run) / RUN_FILE, RunRecord)


def commands_of(run: str | Path) -> list[str]:
    """The commands that a run was started by, the newest last."""
    return read_run(run).get("commands", [])


def recorded_settings(schema: type[Settings], run: str | Path) -> Settings:
    """The settings of a run; where they are from before `layout_version`, its data are read by version 1, and where
    they are from before `least_tokens`, that is 2, which has no effect."""
    before: dict[str, Any] = {"dataset": DataConfig(layout_version=1)}
    if "conditioning" in {field.name for field in dataclasses.fields(schema)}:  # type: ignore[arg-type]
        before["conditioning"] = ConditioningConfig(least_tokens=2)
    return read_settings(schema, Path(run) / "config.yaml", schema(**before))


def with_recorded_rules(kind: str, settings: Settings, run: str) -> Settings:
    """The settings of a training with the rules of the run that it resumes, if it does: `layout_version`, and
    `least_tokens` where there was none."""
    if not run:
        return settings
    RunFolder.check(run, kind)
    if not (Path(run) / RUN_FILE).is_file() or not (Path(run) / "config.yaml").is_file():
        return settings
    recorded: Any = recorded_settings(type(settings), run)
    dataset = settings.dataset  # type: ignore[attr-defined]
    changes = {"dataset": dataclasses.replace(dataset, layout_version=recorded.dataset.layout_version)}
    if hasattr(recorded, "conditioning") and recorded.conditioning.least_tokens == 2:
        changes["conditioning"] = dataclasses.replace(settings.conditioning, least_tokens=2)  # type: ignore[attr-defined]
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training": {"seed": 0}} as {"training.seed": 0}."""
    names: dict[str, Any] = {}
    for name, value in values.items():
        names |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return names
