"""Codes of a data set, encoded once by the frozen autoencoder: of every image and of its mirror image.

folder/codes.safetensors    a map (N, F, h, w) for each level; F is 2 (plain, mirrored) if the data set flips, else 1
folder/manifest.json        key and SHA-256; written last, so it marks a whole cache
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from autoencoders import Autoencoder
from ldm.data.cache_key import ENCODE_AGAIN, CacheKey, check_cache_folder
from ldm.data.dataset import ImageData
from ldm.data.selection import image_batches
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, read_json, sha256_of_file
from ldm.runtime.locks import LOCK, FolderLock
from ldm.runtime.progress import progress
from ldm.runtime.tensors import read_tensors, save_tensors

_FORMAT, _WEIGHTS, _MANIFEST = 1, "codes.safetensors", "manifest.json"


class _Manifest(TypedDict):
    format: Literal[1]
    key: dict[str, Any]
    sha256: str


class CodeCache:
    """Code maps by index, in memory on the CPU: `levels`, coarse to fine, each (N, F, h, w)."""

    def __init__(self, levels: Sequence[Tensor]) -> None:
        self.levels = tuple(levels)

    def __len__(self) -> int:
        return len(self.levels[0])

    @property
    def has_flips(self) -> bool:
        return self.levels[0].shape[1] == 2

    def maps(self, indices: Tensor, flips: Tensor | None = None) -> tuple[Tensor, ...]:
        """The maps (B, h, w) int64 of images, coarse to fine; `flips` (B,) selects mirrored images."""
        sides = torch.zeros_like(indices) if flips is None else flips.to(indices)
        if not self.has_flips and bool(sides.any()):
            raise ValueError("this cache has no mirrored codes: its data set does not flip")
        return tuple(level[indices, sides].long() for level in self.levels)


def check_code_folder(folder: Path, key: CacheKey) -> None:
    """`UserError` unless the folder is absent, empty, or holds nothing but codes; whole ones must be of `key`."""
    check_cache_folder(folder, "codes", lambda name: name == LOCK or name.lstrip(".").startswith((_WEIGHTS, _MANIFEST)))
    if (folder / _MANIFEST).is_file():
        _check_manifest(folder, key)


def encode_codes(
    autoencoder: Autoencoder,
    data: ImageData,
    folder: Path,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str = "auto",
) -> CodeCache:
    """The codes of all images of `data`, read from `folder` if they are there, else encoded and written to it.

    `UserError` for a folder that holds codes of other images or of another autoencoder, or that is damaged.
    """
    key = CacheKey.of(autoencoder, data)
    check_code_folder(folder, key)
    if (folder / _MANIFEST).is_file():
        return _read(folder, key, autoencoder.config.codebook_sizes, len(data), data.flip)
    with FolderLock(folder, work="encoding"):
        levels = _encoded(autoencoder, data, batch_size, num_workers, resolve_device(device))
        save_tensors(folder / _WEIGHTS, {f"level_{k}": level for k, level in enumerate(levels)})
        manifest = {"format": _FORMAT, "key": asdict(key), "sha256": sha256_of_file(folder / _WEIGHTS)}
        atomic_write_json(folder / _MANIFEST, manifest)
    return CodeCache(levels)


def _check_manifest(folder: Path, key: CacheKey) -> str:
    """The SHA-256 that the codes must have; `UserError` for another key."""
    try:
        manifest = read_json(folder / _MANIFEST, _Manifest)
    except UserError as error:
        raise UserError(f"{error}: not that of a code cache", remedy=ENCODE_AGAIN) from None
    key.check(manifest["key"], f"{folder}: the code cache")
    return manifest["sha256"]


def _read(folder: Path, key: CacheKey, sizes: tuple[int, ...], count: int, mirrored: bool) -> CodeCache:
    path, sha256 = folder / _WEIGHTS, _check_manifest(folder, key)
    if not path.is_file() or sha256_of_file(path) != sha256:
        raise UserError(f"{path}: damaged or missing", remedy=ENCODE_AGAIN)
    try:
        tensors = read_tensors(path)
    except UserError as error:
        raise UserError(error.problem, remedy=ENCODE_AGAIN) from None
    levels = [tensors.get(f"level_{k}") for k in range(len(sizes))]
    for level, size in zip(levels, sizes, strict=True):
        fits = level is not None and level.ndim == 4 and level.shape[:2] == (count, 1 + mirrored)
        if not fits or level.is_floating_point() or not 0 <= int(level.min()) <= int(level.max()) < size:  # type: ignore[union-attr]
            raise UserError(f"{path}: not the codes of this data set", remedy=ENCODE_AGAIN)
    return CodeCache([level for level in levels if level is not None])


@torch.no_grad()
def _encoded(
    autoencoder: Autoencoder, data: ImageData, batch_size: int, num_workers: int, device: torch.device
) -> list[Tensor]:
    loader = image_batches(data, torch.arange(len(data)).split(batch_size), num_workers)
    maps: list[list[Tensor]] = [[] for _ in autoencoder.config.codebook_sizes]
    for batch in progress(loader, "encoding codes"):
        images = batch.images.to(device, memory_format=torch.channels_last)  # twice as fast on a CPU
        sides = [autoencoder.codes(side) for side in ((images, images.flip(-1)) if data.flip else (images,))]
        for k, size in enumerate(autoencoder.config.codebook_sizes):
            small = torch.int16 if size <= 2**15 else torch.int32
            maps[k].append(torch.stack([side[k] for side in sides], 1).to("cpu", small))  # (B, F, h, w)
    return [torch.cat(parts) for parts in maps]
