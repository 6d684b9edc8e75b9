"""Averages of the weights at several lengths, by the power-function profile, and any other length from their snapshots.

Karras et al. 2024 (EDM2), section 3 and appendix C. The average of length gamma after step t weighs the weights of time
tau by (gamma + 1) tau^gamma / t^(gamma + 1). `sigma_rel`, the standard deviation of that profile over t, is its length.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ldm.runtime.errors import UserError, at_least
from ldm.runtime.tensors import open_tensors, read_tensors, save_tensors
from ldm.training.run_folder import RunFolder

FOLDER, _FILE = "averages", "averages.safetensors"
_NAME = re.compile(r"step-(\d+)\.safetensors")
_SNAPSHOTS = 50  # by which other lengths are right to a thousandth, near those that were followed
LONGEST = 12**-0.5  # of a uniform profile, gamma = 0


@dataclass(frozen=True)
class AveragesConfig:
    """Averages of the weights beside the published one, of which `ldm ema` makes a model of any length."""

    ema_lengths: tuple[float, ...] = ()
    """Lengths of the averages to follow, as standard deviations of their profile relative to the training so far (0.05
    0.1 in EDM2); each costs a copy of the weights. Unset: none."""
    ema_snapshot_steps: int | None = None
    """A snapshot of these averages every so many steps, and at the end; unset: 50 in `max_train_steps`."""
    ema_snapshot_precision: Literal["float16", "float32"] = "float16"
    """Of the numbers in a snapshot."""

    def __post_init__(self) -> None:
        if self.ema_snapshot_steps is not None:
            at_least(self, ema_snapshot_steps=1)
        for length in self.ema_lengths:
            check_length(length, "`ema_lengths`")
        if len(set(self.ema_lengths)) < len(self.ema_lengths):
            raise UserError("one is given twice", setting="ema_lengths")

    def within(self, steps: int) -> AveragesConfig:
        """These settings for a training of so many steps."""
        return dataclasses.replace(self, ema_snapshot_steps=self.ema_snapshot_steps or -(-steps // _SNAPSHOTS))

    def facts(self) -> dict[str, Any]:
        """What a resumed run must share; nothing where there are none."""
        return {"averages": {"ema_lengths": list(self.ema_lengths)}} if self.ema_lengths else {}


def check_length(length: float, flag: str) -> None:
    """`UserError` unless there is a profile of this relative standard deviation."""
    if not 0 < length <= LONGEST:
        raise UserError(f"{flag} {length:g}: expected above 0 and at most {LONGEST:.3f}, the length of a plain mean")


def exponent(length: float) -> float:
    """gamma of sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2) (eq. 126): the root not below 0."""
    a = length**-2
    roots = np.roots([1, 7, 16 - a, 12 - a])
    return max(0.0, float(roots.real[np.abs(roots.imag) < 1e-6 * (1 + np.abs(roots))].max()))


def inner(a: float, gamma_a: float, b: float, gamma_b: float) -> float:
    """The integral of the product of two profiles, that end at times a and b (appendix C.2)."""
    if a > b:
        a, gamma_a, b, gamma_b = b, gamma_b, a, gamma_a
    scale = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * b)
    return scale * math.exp(gamma_b * math.log(a / b))


def coefficients(known: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> tuple[np.ndarray, float]:
    """Factors of the known profiles (time, gamma) whose sum is nearest to the wanted one in the mean square.

    The second is the distance that is left, relative to the wanted profile's norm: 0 if it is among the known.
    """
    gram = np.array([[inner(*p, *q) for q in known] for p in known])  # (K, K)
    right = np.array([inner(*p, *wanted) for p in known])  # (K,)
    norm = np.sqrt(np.diag(gram))
    scaled, *_ = np.linalg.lstsq(gram / norm[:, None] / norm, right / norm, rcond=1e-14)
    found, whole = scaled / norm, inner(*wanted, *wanted)
    left = whole - 2 * found @ right + found @ gram @ found
    return found, math.sqrt(max(0.0, left) / whole)


class PowerAverages:
    """The averages of a model's trained weights at every length of the settings; without lengths it does nothing."""

    def __init__(self, model: nn.Module, config: AveragesConfig | None) -> None:
        self.config = config = config or AveragesConfig()
        self.exponents = {length: exponent(length) for length in config.ema_lengths}  # gamma, a root found once
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.weights = {
            length: {name: weight.detach().clone() for name, weight in trained.items()} for length in config.ema_lengths
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the weights after step number `step` (from 1): average <- lerp(average, weight, 1 - beta), with
        beta = (1 - 1 / step)^(gamma + 1) (eq. 123), by which the weight of each step is the profile's share of it."""
        if not self.weights:
            return
        current = dict(model.named_parameters())
        for length, averaged in self.weights.items():
            beta = (1 - 1 / step) ** (self.exponents[length] + 1)
            torch._foreach_lerp_(list(averaged.values()), [current[name].detach() for name in averaged], 1 - beta)

    def snapshot(self, run: RunFolder | None, step: int, *, last: bool) -> None:
        """Write averages/step-N.safetensors into the run folder, of the process that has it, where one is due."""
        every = self.config.ema_snapshot_steps
        if run is None or not self.weights or not (last or (every is not None and step % every == 0)):
            return
        dtype = getattr(torch, self.config.ema_snapshot_precision)
        tensors = {name: value.to("cpu", dtype) for name, value in self._named()}
        facts = {"lengths": json.dumps(self.config.ema_lengths)}  # one entry: several come in any order
        save_tensors(run.path / FOLDER / f"step-{step}.safetensors", tensors, facts)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps, by file."""
        return {"averages": dict(self._named())} if self.weights else {}

    def resume(self, checkpoint: Path, step: int, run: RunFolder | None) -> None:
        """Go on from a checkpoint of this step; later snapshots are of a future that will be made anew, and go."""
        if not self.weights:
            return
        stored = read_tensors(checkpoint / _FILE)
        for name, value in self._named():
            value.copy_(stored[name])
        for snapshot in snapshots(run.path) if run is not None else ():
            if snapshot.step > step:
                snapshot.path.unlink()

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for length, averaged in self.weights.items():
            for name, value in averaged.items():
                yield f"{length!r}/{name}", value


@dataclass(frozen=True)
class Snapshot:
    """A file of averages: of every length, after one step."""

    path: Path
    step: int
    lengths: tuple[float, ...]


def snapshots(run: Path) -> list[Snapshot]:
    """All snapshots of a run, oldest first; `UserError` names one that cannot be read."""
    found = []
    for path in (run / FOLDER).glob("step-*.safetensors"):
        if not (match := _NAME.fullmatch(path.name)):
            continue
        try:
            with open_tensors(path) as file:
                lengths = json.loads((file.metadata() or {})["lengths"])
            found.append(Snapshot(path, int(match[1]), tuple(float(length) for length in lengths)))
        except (ValueError, KeyError, TypeError) as error:  # UserError among them
            raise UserError(f"{path}: not a whole snapshot of averages ({error})", remedy="remove it") from None
    return sorted(found, key=lambda snapshot: snapshot.step)


@dataclass(frozen=True)
class Reconstruction:
    """Weights of one length, and how far the profile that they have is from the wanted one (relative)."""

    weights: dict[str, Tensor]
    step: int
    error: float
    snapshots: int


def reconstruct(run: Path, length: float, step: int | None = None) -> Reconstruction:
    """The average of any length after `step` (the last snapshot's by default) from the snapshots up to then.

    The sum of the stored averages whose profile is nearest to the wanted one (section 3.2, appendix C.3), in float64.
    """
    check_length(length, "`length`")
    found = snapshots(run)
    if not found:
        raise UserError(f"{run}: no {FOLDER}/ of snapshots in it", remedy="train with `ema_lengths` 0.05 0.1")
    step = found[-1].step if step is None else step
    known = [snapshot for snapshot in found if snapshot.step <= step]
    if not known or not any(snapshot.step == step for snapshot in known):
        there = ", ".join(str(snapshot.step) for snapshot in found[-20:])
        raise UserError(f"no snapshot of it in {run / FOLDER}", remedy=f"there is {there}", setting="step", value=step)
    basis = [(float(each.step), exponent(own)) for each in known for own in each.lengths]
    factors, error = coefficients(basis, (float(step), exponent(length)))
    opened = [(safe_open(each.path, framework="pt"), each.lengths) for each in known]
    files = [file for file, lengths in opened for _ in lengths]
    prefixes = [f"{own!r}/" for each in known for own in each.lengths]
    weights: dict[str, Tensor] = {}
    try:
        names = [name.removeprefix(prefixes[-1]) for name in files[-1].keys() if name.startswith(prefixes[-1])]  # noqa: SIM118
        for name in names:
            total = torch.zeros((), dtype=torch.float64)
            for file, prefix, factor in zip(files, prefixes, factors, strict=True):
                total = total + float(factor) * file.get_tensor(prefix + name).double()
            weights[name] = total.float()
    except SafetensorError as broken:
        raise UserError(f"{run / FOLDER}: its snapshots are of different models ({broken})") from None
    return Reconstruction(weights, step, error, len(known))


def facts_of(found: Reconstruction, length: float) -> dict[str, Any]:
    """What a model folder tells of its weights."""
    kept = {field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name != "weights"}
    return {"length": length, **kept}
