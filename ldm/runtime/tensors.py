"""Tensors on disk: safetensors files, whole or absent, and read as untrusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoencoders.weight_file import read_weights
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import atomic_file, check_regular

CONFIG_NAME = "config.json"
_DIGEST = "sha256:"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device and layout to a file in a folder that `atomic_folder` gave."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, None if metadata is None else dict(metadata))
    if metadata is not None and len(metadata) > 1:
        _sort_metadata(Path(path))


def _sort_metadata(path: Path) -> None:
    """Order the metadata of a file by name: safetensors orders them at random, and equal content makes equal files."""
    with open(path, "r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # as long as it was, but for the spaces at its end
            stream.seek(8)
            stream.write(text.ljust(size))


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device and layout to a file, atomically."""
    with atomic_file(path) as temporary:
        write_tensors(temporary, tensors, metadata)


def save_with_digest(path: str | Path, tensors: Mapping[str, Tensor], key: str, text: str) -> None:
    """As `save_tensors`, with a text in the metadata, which begins with the SHA-256 of the tensors.

    It is one entry, for several come in any order, and equal tensors shall make equal files.
    """
    save_tensors(path, tensors, {key: f"{_DIGEST}{tensors_digest(tensors)} {text}"})


def metadata_text(path: str | Path, key: str, *, check: bool = True) -> str:
    """The text of `save_with_digest`; `UserError` where it is absent or the tensors, all of which are read, differ.

    A file without a digest, of an earlier version, is taken as it is, and so is each unless `check`.
    """
    with open_tensors(path) as file:
        text = (file.metadata() or {}).get(key)
    if text is None:
        raise UserError(f"{path}: has no {key} in its metadata")
    if not text.startswith(_DIGEST):
        return text
    digest, _, text = text.removeprefix(_DIGEST).partition(" ")
    if check and tensors_digest(read_tensors(path)) != digest:
        raise UserError(f"{path}: its tensors differ from their SHA-256")
    return text


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bits of tensors, wherever they lie and in whatever memory layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Any]:
    """A safetensors file, open for its names, shapes and metadata; `UserError` where it is absent or not whole."""
    with _refused(path), safe_open(path, framework="pt") as file:
        yield file


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; `UserError` where it is absent or not whole."""
    with _refused(path):
        return load_file(path)


def load_expected(
    path: str | Path, expected: Mapping[str, Tensor], *, described_by: str = CONFIG_NAME, exact_types: bool = False
) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; `UserError` lists how they differ from the expected ones.

    Every weight that is loaded comes through here or, in `autoencoders`, through `read_weights`, which is the same.
    """
    with user_errors():
        return read_weights(path, expected, described_by=described_by, exact_types=exact_types)


@contextmanager
def _refused(path: str | Path) -> Iterator[None]:
    try:
        check_regular(path)
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (weights are read from safetensors only)") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def tensor_shapes(file: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of an open file, from its header alone."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
