"""A network and its folder: `config.json` beside `diffusion_pytorch_model.safetensors`, as diffusers keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, fingerprint, read_json
from ldm.runtime.tensors import CONFIG_NAME, load_expected, save_tensors
from ldm.runtime.text import printable

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
    if content.get("_class_name") != class_name:
        kind = printable(json.dumps(content.get("_class_name")), 60)
        raise UserError(f"{path}: expected the configuration of a {class_name}, found {kind}")
    return {key: value for key, value in content.items() if not key.startswith("_")}


def load_weights(folder: str | Path, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Fill `network`, built on the meta device, from the weight file, which is compared with it (`load_expected`)."""
    tensors = load_expected(Path(folder) / WEIGHTS_NAME, network.state_dict())
    network.load_state_dict({name: tensor.to(dtype, copy=True) for name, tensor in tensors.items()}, assign=True)
