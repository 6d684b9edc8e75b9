"""Checkpoints: safetensors and JSON, with sizes and SHA-256 in a manifest, written whole or not at all."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_folder, atomic_write_json, read_json, sha256_of_file
from ldm.runtime.tensors import read_tensors, write_tensors
from ldm.training.sharding import distribute_like

logger = logging.getLogger("ldm")
_NAME = re.compile(r"checkpoint-(\d+)")
_ALWAYS = ("model.safetensors", "optimizer.safetensors", "state.json")


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as tensors named `<parameter>/<state>`, in place of a pickled state_dict."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{entry}": value
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


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
    with atomic_folder(target) as folder:
        for name, values in tensors.items():
            write_tensors(folder / f"{name}.safetensors", values)
        atomic_write_json(folder / "state.json", {"step": step, **state})
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
            for path in sorted(folder.iterdir())
        }
        atomic_write_json(folder / "manifest.json", files)
    if problem := damage(target):
        raise OSError(f"{target}: written but not readable as written: {problem}")
    for old in checkpoints(run)[: -max(limit, 1)]:
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(run: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first, whole or not."""
    numbered = [(int(match[1]), path) for path in run.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files against its manifest, or None."""
    try:
        listed = read_json(folder / "manifest.json")
        manifest = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    except UserError as error:
        return str(error)
    except (AttributeError, KeyError, TypeError):
        return "manifest.json is not one"
    for name in {*_ALWAYS, *manifest}:
        path = folder / name
        if name not in manifest or Path(name).name != name or not path.is_file():
            return f"{name} is missing"
        size, sha256 = manifest[name]
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if sha256_of_file(path) != sha256:
            return f"{name} differs from its SHA-256"
    return None


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


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a checkpoint's file; `UserError` for weights of another model."""
    try:
        own = model.state_dict()
        tensors = {name: distribute_like(value, own.get(name, value)) for name, value in read_tensors(path).items()}
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"{path}: weights of another model ({first})") from None
