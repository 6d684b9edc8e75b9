"""`ldm train autoencoder|diffusion|classifier|prior|gan`."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import shlex
from pathlib import Path
from typing import Any

from ldm.cli.data_report import show_data
from ldm.cli.default_folder import check_single, default_folder
from ldm.cli.parsing import parse, require
from ldm.runtime.device import check_device, resolve_device
from ldm.runtime.distributed import current_processes
from ldm.runtime.errors import UserError
from ldm.runtime.settings import to_yaml
from ldm.runtime.text import counted, suggest
from ldm.training.run_folder import RunFolder

KINDS = ("autoencoder", "diffusion", "classifier", "prior", "gan")


def run(arguments: list[str]) -> int:
    """Train what is named, resuming the run folder if it holds an earlier run of the same settings."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: ldm train {'|'.join(KINDS)} --data ... --output-dir ... (--help for all settings)")
        return 0 if arguments else 2
    kind, rest = arguments[0], arguments[1:]
    if kind not in KINDS:
        raise UserError(f"cannot train {kind!r}", remedy=suggest(kind, KINDS))
    needs = "" if kind in ("autoencoder", "gan") else "--autoencoder"
    settings = parse(_schema(kind), rest, f"train {kind}", required=needs)
    command = shlex.join(["ldm", "train", *arguments])
    settings = _with_output_dir(kind, settings, command)
    if kind not in ("autoencoder", "gan"):
        require(settings.autoencoder, "--autoencoder", "the output folder of `ldm train autoencoder`, or identity")
    check_device(settings.training.device)
    RunFolder.check(settings.training.output_dir, kind)
    if settings.training.dry_run:
        return _dry_run(kind, settings)
    measures = train_with(kind, settings, command)
    for name, value in measures.items():
        if isinstance(value, float):
            print(f"{name}: {value:.4g}")
    for row in measures.get("accuracy_by_noise", ()):
        ratio = math.inf if row["noise_ratio"] is None else row["noise_ratio"]  # JSON has no infinity
        print(f"  t {row['t']:4.0f}  sigma/alpha {ratio:8.3f}  accuracy {row['accuracy']:.3f}")
    if current_processes().is_main:
        print(f"wrote {settings.training.output_dir}")
    return 0


def _with_output_dir(kind: str, settings: Any, command: str) -> Any:
    """The settings with a run folder: unless it is named, that of the newest run of this command, else a new one."""
    from ldm.training.run_folder import commands_of

    if settings.training.output_dir:
        return settings
    if not settings.training.dry_run:
        check_single(int(os.environ.get("WORLD_SIZE", "1")))
    folder = default_folder("runs", kind, lambda run: (run / "run.json").is_file() and command in commands_of(run)[-1:])
    return dataclasses.replace(settings, training=dataclasses.replace(settings.training, output_dir=folder))


def _schema(kind: str) -> type[Any]:
    """The settings of a kind of training."""
    from ldm.training.tasks import settings

    return getattr(settings, f"{kind.capitalize()}Run")


def train_with(kind: str, settings: Any, command: str = "") -> dict[str, Any]:
    """Run one training with complete settings; returns its last measures. The run remembers the command."""
    from ldm.training.loop import train
    from ldm.training.run_folder import with_recorded_rules
    from ldm.training.tasks.published import keep_scales

    settings = keep_scales(with_recorded_rules(kind, settings, settings.training.output_dir))
    task, device = _task(kind, settings)
    if task.report is not None:
        show_data(task.report)
    if kind == "autoencoder" and settings.autoencoder.coder_kind == "linear":
        from ldm.training.tasks.linear import fit

        return fit(task, settings.training.output_dir, to_yaml(settings), command)
    return train(task, settings.training, to_yaml(settings), device, command)


def _task(kind: str, settings: Any) -> tuple[Any, Any]:
    """The task with its data and networks, and the device."""
    from ldm.data.open import open_data
    from ldm.training.checkpoint import check_not_past
    from ldm.training.tracking import check_trackers

    check_trackers(settings.training.report_to)
    device = resolve_device(settings.training.device)
    RunFolder.check(settings.training.output_dir, kind)
    training = settings.training
    check_not_past(Path(training.output_dir), training.resume_from_checkpoint, training.max_train_steps)
    data, validation = open_data(settings.dataset, "train"), open_data(settings.dataset, "validation")
    module = importlib.import_module(f"ldm.training.tasks.{kind}")
    return getattr(module, f"{kind.capitalize()}Task")(settings, data, validation, device), device


def _dry_run(kind: str, settings: Any) -> int:
    """`--dry-run`: print what the training would cost, one figure a line."""
    from ldm.training.dry_run import STEPS, dry_run
    from ldm.training.run_folder import with_recorded_rules

    if kind == "autoencoder" and settings.autoencoder.coder_kind == "linear":
        raise UserError("--dry-run: a linear autoencoder is fitted in one pass, without steps; leave it out")
    settings = with_recorded_rules(kind, settings, settings.training.output_dir)
    changes: dict[str, Any] = {}  # what no step does, but may train a network first
    if kind == "autoencoder":
        changes["validation_rfid"] = False
    if kind in ("diffusion", "prior"):
        changes["evaluation"] = dataclasses.replace(settings.evaluation, eval_every=0)
    task, device = _task(kind, dataclasses.replace(settings, **changes))
    cost = dry_run(task, settings.training, device)
    if not current_processes().is_main:
        return 0
    if task.report is not None:
        show_data(task.report)
    mib = {name: f"{name} {size / 2**20:,.1f}" for name, size in cost.memory.items()}
    total = sum(cost.parameters.values())
    print(f"parameters: {total:,} ({', '.join(f'{name} {count:,}' for name, count in cost.parameters.items())})")
    peak = f"; the GPU held at most {cost.peak / 2**20:,.1f}" if cost.peak is not None else ""
    print(f"memory: about {sum(cost.memory.values()) / 2**20:,.1f} MiB ({', '.join(mib.values())}){peak}")
    print(f"operations: {cost.flops / 1e9:,.2f} GFLOP a step of {counted(settings.training.train_batch_size, 'image')}")
    print(f"time: {cost.step_seconds:.3g} s a step ({STEPS} steps on {device}), {_duration(cost.seconds)} in all")
    print(f"checkpoint: {cost.checkpoint / 2**20:,.1f} MiB")
    print("dry run: nothing was written")
    return 0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
