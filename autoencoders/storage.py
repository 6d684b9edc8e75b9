"""Model folders: config.json and safetensors, in the form of diffusers' `AutoencoderKL` and `VQModel`.

Nothing in a folder is trusted: no class is named by it, no pickle is read, sizes are compared before memory is taken.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save
from torch import Tensor

from autoencoders.config import AutoencoderConfig
from autoencoders.diffusers_config import class_and_output, config_of, default_scale, entries_of, statistics_prefix
from autoencoders.weight_file import read_weights

Statistics: TypeAlias = tuple[Tensor, Tensor]  # mean and standard deviation (C,)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_CONFIG_LIMIT = 2**20  # bytes
_LARGEST = 1e20  # number in a calibration
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of attention


def publish(
    config: AutoencoderConfig, tensors: Mapping[str, Tensor], calibration: Statistics, prior: Statistics
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of config.json and of the weights file; the calibration goes into the weights where that is exact.

    `calibration` and `prior` are means and standard deviations (C,): of the latents that leave the bottleneck, and of
    the prior in the same units, which a calibration in the weights changes.
    """
    published = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    (mean, std), (center, spread) = ((x.detach().cpu() for x in pair) for pair in (calibration, prior))
    if config.options.calibrated_by_quant_conv and config.options.quant_conv(config):
        _fold_calibration(published, mean.double(), std.double())
        center, spread = (center - mean) / std, spread / std
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    return entries_of(config, mean, std, center, spread), published


def _fold_calibration(tensors: dict[str, Tensor], mean: Tensor, std: Tensor) -> None:
    """Put the calibration into quant_conv and its inverse into post_quant_conv: both are 1x1, so this is exact.

    mu' = (mu - mean) / std,   log sigma'^2 = log sigma^2 - 2 log std,   W (z std + mean) + b = (W std) z + (b + W mean)
    """
    weight, bias = tensors["quant_conv.weight"], tensors["quant_conv.bias"]  # (2 C, 2 C, 1, 1), (2 C,)
    scale = torch.cat([std, torch.ones_like(std)])
    shift = torch.cat([mean / std, 2 * std.log()])
    tensors["quant_conv.weight"] = (weight.double() / scale[:, None, None, None]).to(weight.dtype)
    tensors["quant_conv.bias"] = (bias.double() / scale - shift).to(bias.dtype)
    weight, bias = tensors["post_quant_conv.weight"], tensors["post_quant_conv.bias"]  # (C, C, 1, 1), (C,)
    tensors["post_quant_conv.weight"] = (weight.double() * std[:, None, None]).to(weight.dtype)
    tensors["post_quant_conv.bias"] = (bias.double() + weight.double()[:, :, 0, 0] @ mean).to(bias.dtype)


def write(path: str | Path, entries: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files, each whole or not at all."""
    target = Path(path)
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(entries, indent=2, allow_nan=False) + "\n"
    for name, data in ((WEIGHTS_NAME, save(tensors, metadata={"format": "pt"})), (CONFIG_NAME, text.encode())):
        temporary = target / f".{name}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target / name)
        finally:
            temporary.unlink(missing_ok=True)


def read_config(path: str | Path) -> tuple[AutoencoderConfig, Statistics, Statistics]:
    """The settings of a folder, the statistics of its raw latents, and those of the prior, N(0, 1) if absent."""
    file = Path(path) / CONFIG_NAME
    entries = read_json(file)
    try:
        config = config_of(entries)
        return config, _calibration_of(entries, config.channels), _prior_of(entries, config.channels)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; `ValueError` where it is absent, too large or none."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected the folder of an autoencoder")
    if file.stat().st_size > _CONFIG_LIMIT:
        raise ValueError(f"{file}: larger than {_CONFIG_LIMIT} bytes, not the settings of a model")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(entries).__name__}")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key is there twice")
    return entries


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def read_tensors(path: str | Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a folder by name; `ValueError` unless they are the expected ones (`read_weights`)."""
    return read_weights(Path(path) / WEIGHTS_NAME, expected, current_name=_current_name)


def _current_name(key: str) -> str:
    """The present name of a parameter; the first Stable Diffusion wrote `mid_block.attentions.0.query.weight`."""
    words = key.split(".")
    if len(words) > 2 and "attentions" in words:
        words[-2] = _OLD_NAMES.get(words[-2], words[-2])
    return ".".join(words)


def _calibration_of(entries: Mapping[str, Any], channels: int) -> Statistics:
    """calibrated = (z - latents_mean) / latents_std * scaling_factor, with shift_factor for an absent latents_mean."""
    class_name = class_and_output(entries)[0]
    prefix = statistics_prefix(class_name)
    mean, std = entries.get(f"{prefix}latents_mean"), entries.get(f"{prefix}latents_std")
    scale = entries.get("scaling_factor", default_scale(class_name))
    scale = _numbers("scaling_factor", scale, 1, positive=True)
    shift = entries.get("shift_factor")
    if mean is not None and shift is not None:
        raise ValueError("latents_mean and shift_factor: expected one of them, got both")
    center = _numbers("shift_factor", shift or 0.0, 1).expand(channels)
    if mean is not None:
        center = _numbers(f"{prefix}latents_mean", mean, channels)
    spread = torch.ones(channels) if std is None else _numbers(f"{prefix}latents_std", std, channels, positive=True)
    return center.clone(), spread / scale


def _prior_of(entries: Mapping[str, Any], channels: int) -> Statistics:
    """Mean and standard deviation (C,) of the prior in the units of the latents; 0 and 1 where they are absent."""
    mean, std = entries.get("_prior_mean"), entries.get("_prior_std")
    if mean is None and std is None:
        return torch.zeros(channels), torch.ones(channels)
    return _numbers("_prior_mean", mean, channels), _numbers("_prior_std", std, channels, positive=True)


def _numbers(key: str, value: Any, length: int, positive: bool = False) -> Tensor:
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        valid = isinstance(number, (int, float)) and not isinstance(number, bool) and -_LARGEST < number < _LARGEST
        if not valid or (positive and not number > 1 / _LARGEST):
            expected = "positive numbers" if positive else "finite numbers"
            raise ValueError(f"{key}: expected {expected}, got {reprlib.repr(number)}")
    if len(numbers) != length:
        raise ValueError(f"{key}: expected {length} numbers, got {len(numbers)}")
    return torch.tensor(numbers, dtype=torch.float32)
