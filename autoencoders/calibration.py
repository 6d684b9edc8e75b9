"""The statistics in a config.json: those of raw latents, which calibrate them, and those of a prior."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DEFAULT_SCALE = 0.18215  # what diffusers takes where nothing is said
LOGIT_LAPLACE = "LogitLaplace"  # before the name of a class whose decoder gives the parameters of a likelihood
_LARGEST = 1e20  # of a number in the calibration


def class_and_output(entries: Mapping[str, Any]) -> tuple[Any, str]:
    """The class, and what its decoder gives, which is the first half of some names."""
    name = entries.get("_class_name")
    likelihood = isinstance(name, str) and name.startswith(LOGIT_LAPLACE)
    return (name.removeprefix(LOGIT_LAPLACE), "logit_laplace") if likelihood else (name, "image")  # type: ignore[union-attr]


def is_standard(mean: Tensor, std: Tensor) -> bool:
    """Whether statistics (C,) are 0 and 1, which need not be said."""
    return bool((mean == 0).all() and (std == 1).all())


def calibration_of(entries: Mapping[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    """calibrated = (z - latents_mean) / latents_std * scaling_factor, with shift_factor for an absent latents_mean."""
    class_name = class_and_output(entries)[0]
    own = "" if class_name == "AutoencoderKL" else "_"
    mean = entries.get(f"{own}latents_mean")
    std = entries.get(f"{own}latents_std")
    own_class = class_name in ("IdentityAutoencoder", "LinearAutoencoder")
    default = 1.0 if own_class else DEFAULT_SCALE
    scale = _numbers("scaling_factor", entries.get("scaling_factor", default), 1, positive=True)
    shift = entries.get("shift_factor")
    if mean is not None and shift is not None:
        raise ValueError("latents_mean and shift_factor: expected one of them, got both")
    center = _numbers("shift_factor", shift or 0.0, 1).expand(channels)
    if mean is not None:
        center = _numbers(f"{own}latents_mean", mean, channels)
    spread = torch.ones(channels) if std is None else _numbers(f"{own}latents_std", std, channels, positive=True)
    return center.clone(), spread / scale


def prior_of(entries: Mapping[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the prior in the units of the latents; 0 and 1 where it is not said."""
    mean, std = entries.get("_prior_mean"), entries.get("_prior_std")
    if mean is None and std is None:
        return torch.zeros(channels), torch.ones(channels)
    return _numbers("_prior_mean", mean, channels), _numbers("_prior_std", std, channels, positive=True)


def _numbers(key: str, value: Any, length: int, positive: bool = False) -> Tensor:
    listed = value if isinstance(value, list) else [value]
    for number in listed:
        fine = isinstance(number, (int, float)) and not isinstance(number, bool) and -_LARGEST < number < _LARGEST
        if not fine or (positive and not number > 1 / _LARGEST):
            expected = "positive numbers" if positive else "finite numbers"
            raise ValueError(f"{key}: expected {expected}, got {reprlib.repr(number)}")
    if len(listed) != length:
        raise ValueError(f"{key}: expected {length} numbers, got {len(listed)}")
    return torch.tensor(listed, dtype=torch.float32)
