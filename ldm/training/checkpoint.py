"""Checkpoints: safetensors and JSON, with sizes and SHA-256 in a manifest, written whole or not at all."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from msgspec import Meta
from torch import Tensor, nn

from ldm.runtime.checksums import checked_entries, checksums_of, differing_files
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_folder, atomic_write_json, read_json
from ldm.runtime.tensors import load_expected, open_tensors, tensor_shapes, write_tensors
from ldm.runtime.text import printable
from ldm.training.sharding import distribute_like

logger = logging.getLogger("ldm")
_NAME = re.compile(r"checkpoint-(\d+)")
_MANIFEST = "manifest.json"
_ALWAYS = ("model.safetensors", "optimizer.safetensors", "state.json")


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as tensors named `<parameter>/<state>`, in place of a pickled state_dict."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{entry}": value
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def without_moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """The parameters that the optimiser has no state of, for they have had no gradient so far."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group["params"] if not optimizer.state.get(p)]


def read_optimizer_tensors(
    path: Path, optimizer: torch.optim.Optimizer, model: nn.Module, absent: Collection[str] | None
) -> dict[str, Tensor]:
    """The optimiser's state in a file; `UserError` lists how it differs from that of this optimiser and model.

    `absent` are the parameters without state; None of a checkpoint from before they were recorded, where those that the
    file does not name are taken for it.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    if absent is None:
        with open_tensors(path) as file:
            stored = {name.rsplit("/", 1)[0] for name in tensor_shapes(file)}
        absent = set(names.values()) - stored
    expected: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        moments = ("momentum",) if group.get("muon") else ("exp_avg", "exp_avg_sq")
        for parameter in group["params"]:
            if (name := names[parameter]) not in absent:
                step = torch.zeros((), dtype=torch.float32 if group.get("fused") else None)
                expected |= {f"{name}/{moment}": parameter for moment in moments} | {f"{name}/step": step}
    return load_expected(path, expected, described_by="config.yaml", exact_types=True)


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`: moments take the parameter's device and memory layout.

    The fused AdamW walks through parameter and moments in the order of memory, so the layouts must be the same.
    """
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, value in tensors.items():
        parameter_name, entry = name.rsplit("/", 1)
        parameter = parameters[parameter_name]
        if entry != "step":
            value = torch.empty_like(parameter, requires_grad=False).copy_(distribute_like(value, parameter))
        elif fused:
            value = value.to(parameter.device)
        optimizer.state[parameter][entry] = value


def save_checkpoint(
    run: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], limit: int
) -> Path:
    """Write `checkpoint-<step>`; only after it was read back and verified, remove all but the newest `limit`."""
    target = run / f"checkpoint-{step}"
    remove_own_files(target)
    with atomic_folder(target) as folder:
        for name, values in tensors.items():
            write_tensors(folder / f"{name}.safetensors", values)
        atomic_write_json(folder / "state.json", {"step": step, **state})
        atomic_write_json(folder / _MANIFEST, checksums_of(folder))
    if problem := damage(target):
        raise OSError(f"{target}: written but not readable as written: {problem}")
    for old in checkpoints(run)[: -max(limit, 1)]:
        if old != target:
            remove_own_files(old)
    return target


def remove_own_files(folder: Path) -> None:
    """Remove a checkpoint, by its manifest; a folder with other files stays with them, under another name."""
    if not folder.is_dir():
        return
    if (manifest := folder / _MANIFEST).is_file():
        with suppress(UserError, ValueError):
            for name in checked_entries(read_json(manifest)):
                (folder / name).unlink(missing_ok=True)
            manifest.unlink()
    with suppress(OSError):
        folder.rmdir()
        return
    number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.others-{n}").exists())
    renamed = folder.rename(folder.with_name(f"{folder.name}.others-{number}"))
    others = ", ".join(printable(path.name, 40) for path in sorted(renamed.iterdir())[:3])
    logger.warning("%s held files that this run did not write (%s): they stay in %s", folder, others, renamed.name)


_Count = Annotated[int, Meta(ge=0, le=2**53)]


class State(TypedDict):
    """The contents of state.json."""

    step: _Count
    scaler: dict[str, float] | None
    watch: NotRequired[dict[str, _Count] | None]
    seconds: NotRequired[Annotated[float, Meta(ge=0)]]
    without_moments: NotRequired[dict[str, list[str]] | None]


def read_state(folder: Path) -> State:
    """The state.json of a checkpoint; `UserError` where it is not that of this step."""
    state = read_json(folder / "state.json", State)
    if (match := _NAME.fullmatch(folder.name)) and int(match[1]) != state["step"]:
        raise UserError(f"{folder / 'state.json'}: step: expected {match[1]}, got {state['step']}")
    return state


def checkpoints(run: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first, whole or not."""
    numbered = [(int(match[1]), path) for path in run.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files against its manifest, or None."""
    try:
        manifest = checked_entries(read_json(folder / _MANIFEST))
    except UserError as error:
        return str(error)
    except ValueError:
        return f"{_MANIFEST} is not one"
    for name in _ALWAYS:
        if name not in manifest:
            return f"{name} is missing"
    return next(differing_files(folder, manifest), None)


def newest_intact_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that agrees with its manifest; damaged ones are named in a warning and passed over."""
    for folder in reversed(checkpoints(run)):
        if not (problem := damage(folder)):
            return folder
        logger.warning("%s is damaged (%s): using the one before it, if any", folder.name, problem)
    return None


def checkpoint_to_resume(run: Path, name: str) -> Path | None:
    """The checkpoint to resume from, None to begin anew; `name` is "latest" or that of an intact one."""
    if name == "latest":
        return newest_intact_checkpoint(run) if run.is_dir() else None
    folder = run / name
    if not _NAME.fullmatch(name) or not folder.is_dir():
        names = ", ".join(path.name for path in checkpoints(run)) if run.is_dir() else ""
        missing = f"no such checkpoint in {run}; there is {names or 'none'}"
        raise UserError(missing, setting="resume_from_checkpoint", value=name)
    if problem := damage(folder):
        raise UserError(f"damaged ({problem})", remedy="use latest", setting="resume_from_checkpoint", value=name)
    return folder


def check_not_past(run: Path, name: str, max_train_steps: int) -> None:
    """`UserError` where the checkpoint to resume from has more steps than the run shall have; nothing is touched."""
    if not run.is_dir() or all(_step(path) <= max_train_steps for path in checkpoints(run)):
        return
    folder = checkpoint_to_resume(run, name)
    if folder is not None and _step(folder) > max_train_steps:
        problem = f"{run} has made {_step(folder)} steps already"
        remedy = f"take {_step(folder)} or more, or another `output_dir`"
        raise UserError(problem, remedy=remedy, setting="max_train_steps", value=max_train_steps)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a checkpoint's file; `UserError` lists how it differs from the model."""
    own = model.state_dict()
    tensors = load_expected(path, own, described_by="config.yaml", exact_types=True)
    model.load_state_dict({name: distribute_like(value, own[name]) for name, value in tensors.items()})
