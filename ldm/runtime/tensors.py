"""Tensors on disk: safetensors files, whole or absent, and read as untrusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_file, check_regular


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device and layout to a file in a folder that `atomic_folder` gave."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, None if metadata is None else dict(metadata))


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device and layout to a file, atomically."""
    with atomic_file(path) as temporary:
        write_tensors(temporary, tensors, metadata)


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Any]:
    """A safetensors file, open for its names, shapes and metadata; `UserError` where it is absent or not whole."""
    with _refused(path), safe_open(path, framework="pt") as file:
        yield file


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; `UserError` where it is absent or not whole."""
    with _refused(path):
        return load_file(path)


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
