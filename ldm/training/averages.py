"""Averages of the weights: exponential, or by the power-function profile at several lengths.

Karras et al. 2024 (EDM2), section 3 and appendix C. The average of length gamma after step t weighs the weights of time
tau by (gamma + 1) tau^gamma / t^(gamma + 1). `sigma_rel`, the standard deviation of that profile over t, is its length.
Any other length is reconstructed from snapshots.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from autoencoders.weight_file import not_finite, refuse
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.schema import convert, parse_json
from ldm.runtime.tensors import load_expected, metadata_text, save_with_digest
from ldm.training.config import AveragesConfig, check_length
from ldm.training.run_folder import RunFolder

FOLDER, _FILE = "averages", "averages.safetensors"
_NAME = re.compile(r"step-(\d+)\.safetensors")


class ExponentialMovingAverage:
    """A second copy of a model whose weights follow it: ema <- lerp(ema, weight, 1 - decay).

    The decay warms up as min(decay, (1 + n) / (10 + n)) with n the updates so far (counting from 0), so that early
    averages are not ruled by the initial weights. Buffers and frozen parameters are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._followed: nn.Module | None = None  # whose tensors the lists are: walking a network takes as long as lerp
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Follow `model`, of the same structure, after its update number `updates` (0 for the first)."""
        if model is not self._followed:
            self._follow(model)
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(*self._averaged, 1 - decay)
        for copied, current in zip(*self._copied, strict=True):
            copied.copy_(current)

    def _follow(self, model: nn.Module) -> None:
        """List the tensors of both: those that learn are averaged, the others (an EMA codebook, buffers) copied."""
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        trained = [pair for pair in pairs if pair[1].requires_grad]
        fixed = [pair for pair in pairs if not pair[1].requires_grad]
        fixed += zip(self.model.buffers(), model.buffers(), strict=True)  # type: ignore[arg-type]
        self._followed = model
        self._averaged = [average for average, _ in trained], [weight for _, weight in trained]
        self._copied = [average for average, _ in fixed], [weight for _, weight in fixed]


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


def coefficients(basis: Sequence[tuple[float, float]], target: tuple[float, float]) -> tuple[np.ndarray, float]:
    """Factors of the basis profiles (time, gamma) whose sum is nearest to the target profile in the mean square.

    They are divided by their sum, as in EDM2's own code: every profile has mass 1, so a weight that stays the same
    during the training is reconstructed as it is. The second is the distance that is left, relative to the target's
    norm: 0 if it is in the basis.
    """
    gram = np.array([[inner(*p, *q) for q in basis] for p in basis])  # (K, K)
    right = np.array([inner(*p, *target) for p in basis])  # (K,)
    norm = np.sqrt(np.diag(gram))
    scaled, *_ = np.linalg.lstsq(gram / norm[:, None] / norm, right / norm, rcond=1e-14)
    factors, squared = scaled / norm, inner(*target, *target)
    factors = factors / factors.sum()
    residual = squared - 2 * factors @ right + factors @ gram @ factors
    return factors, math.sqrt(max(0.0, residual) / squared)


class PowerAverages:
    """The averages of a model's trained weights at every length of the settings; without lengths it does nothing."""

    def __init__(self, model: nn.Module, config: AveragesConfig) -> None:
        self.config = config
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
        lengths = json.dumps(self.config.ema_lengths)
        save_with_digest(run.path / FOLDER / f"step-{step}.safetensors", tensors, "lengths", lengths)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by file."""
        return {"averages": dict(self._named())} if self.weights else {}

    def resume(self, checkpoint: Path, step: int, run: RunFolder | None) -> None:
        """Go on from a checkpoint of this step; later snapshots are removed, for they will be made anew."""
        if not self.weights:
            return
        stored = load_expected(checkpoint / _FILE, dict(self._named()), described_by="config.yaml", exact_types=True)
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
    snapshots_read = []
    for path in (run / FOLDER).glob("step-*.safetensors"):
        if not (match := _NAME.fullmatch(path.name)):
            continue
        try:
            lengths = convert(parse_json(metadata_text(path, "lengths", check=False)), tuple[float, ...])
            snapshots_read.append(Snapshot(path, int(match[1]), lengths))
        except (ValueError, KeyError) as error:  # UserError among them
            raise UserError(f"{path}: not a whole snapshot of averages ({error})", remedy="remove it") from None
    return sorted(snapshots_read, key=lambda snapshot: snapshot.step)


@dataclass(frozen=True)
class Reconstruction:
    """Weights of one length, and how far their profile is from that of the length (relative)."""

    weights: dict[str, Tensor]
    length: float
    step: int
    error: float
    snapshots: int

    def metadata(self) -> dict[str, Any]:
        """What a model folder stores about its weights."""
        return {"length": self.length, "step": self.step, "error": self.error, "snapshots": self.snapshots}


def reconstruct(run: Path, length: float, step: int | None = None) -> Reconstruction:
    """The average of any length after `step` (the last snapshot's by default) from the snapshots up to then.

    The sum of the stored averages whose profile is nearest to that of the length (section 3.2, appendix C.3), in
    float64.
    """
    check_length(length, "length")
    stored = snapshots(run)
    if not stored:
        raise UserError(f"{run}: no {FOLDER}/ of snapshots in it", remedy="train with `ema_lengths` 0.05 0.1")
    step = stored[-1].step if step is None else step
    earlier = [snapshot for snapshot in stored if snapshot.step <= step]
    if not any(snapshot.step == step for snapshot in earlier):
        steps = ", ".join(str(snapshot.step) for snapshot in stored[-20:])
        raise UserError(f"no snapshot of it in {run / FOLDER}", remedy=f"there is {steps}", setting="step", value=step)
    basis = [(float(snapshot.step), exponent(own)) for snapshot in earlier for own in snapshot.lengths]
    factors, error = coefficients(basis, (float(step), exponent(length)))
    for snapshot in earlier:
        metadata_text(snapshot.path, "lengths")  # whose tensors it checks
    opened = [(safe_open(snapshot.path, framework="pt"), snapshot.lengths) for snapshot in earlier]
    files = [file for file, lengths in opened for _ in lengths]
    prefixes = [f"{own!r}/" for snapshot in earlier for own in snapshot.lengths]
    weights: dict[str, Tensor] = {}
    try:
        names = [name.removeprefix(prefixes[-1]) for name in files[-1].keys() if name.startswith(prefixes[-1])]  # noqa: SIM118
        for name in names:
            total = torch.zeros(files[-1].get_slice(prefixes[-1] + name).get_shape(), dtype=torch.float64)
            for file, prefix, factor in zip(files, prefixes, factors, strict=True):
                stored_average = file.get_tensor(prefix + name).double()
                if stored_average.shape != total.shape:
                    raise SafetensorError(f"{name} has shapes {tuple(stored_average.shape)} and {tuple(total.shape)}")
                total += float(factor) * stored_average
            weights[name] = total.float()
    except SafetensorError as error_in_file:
        raise UserError(f"{run / FOLDER}: its snapshots are of different models ({error_in_file})") from None
    with user_errors():
        refuse(run / FOLDER, not_finite(weights))
    return Reconstruction(weights, length, step, error, len(earlier))
