"""A network and its folder: `config.json` beside `diffusion_pytorch_model.safetensors`, as diffusers keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, fingerprint, read_json
from ldm.runtime.tensors import open_tensors, save_tensors, tensor_shapes

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def weights_fingerprint(network: nn.Module) -> str:
    """SHA-256 of the names and bits of all weights and buffers, wherever they lie and in whatever memory layout."""
    digests = {}
    for name, tensor in network.state_dict().items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digests[name] = hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
    return fingerprint(digests)


def save_network(folder: str | Path, class_name: str, config: Mapping[str, Any], network: nn.Module) -> None:
    """Write the configuration and the weights of `network` into `folder`, each file atomically."""
    save_tensors(Path(folder) / WEIGHTS_NAME, network.state_dict(), {"format": "pt"})
    atomic_write_json(Path(folder) / CONFIG_NAME, {"_class_name": class_name, **config})


def read_config(folder: str | Path, class_name: str) -> dict[str, Any]:
    """The keys of `config.json` without the private ones; `UserError` unless it describes a `class_name`."""
    path = Path(folder) / CONFIG_NAME
    content = read_json(path)
    if not isinstance(content, dict) or content.get("_class_name") != class_name:
        kind = content.get("_class_name") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: expected the configuration of a {class_name}, found {json.dumps(kind)}")
    return {key: value for key, value in content.items() if not key.startswith("_")}


def load_weights(folder: str | Path, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Fill `network`, built on the meta device, from the weight file; names and shapes are compared before reading."""
    path = Path(folder) / WEIGHTS_NAME
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    with open_tensors(path) as file:
        _compare(path, expected, tensor_shapes(file))
        tensors: dict[str, Tensor] = {name: file.get_tensor(name).to(dtype, copy=True) for name in expected}
    network.load_state_dict(tensors, assign=True)


def _compare(path: Path, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> None:
    """`UserError` naming the first parameters that are missing, not expected, or of another shape."""
    problems = [f"{name} is missing" for name in expected if name not in stored]
    problems += [f"{name} is not expected" for name in stored if name not in expected]
    problems += [
        f"{name} has shape {list(stored[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path}: the weights do not fit {CONFIG_NAME}: {'; '.join(problems[:3])}{more}")
