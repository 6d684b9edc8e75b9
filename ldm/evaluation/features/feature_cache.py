"""Features of real images, computed once: in the user's cache folder under a key of what they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.features.archive import Archive, save_archive
from ldm.evaluation.features.extractors import Extractor
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.errors import UserError
from ldm.runtime.files import cache_folder, fingerprint
from ldm.runtime.progress import progress
from ldm.runtime.tensors import read_tensors, save_tensors

VERSION = 1  # raise it when the features of an image change
_MOST = 2**30  # bytes; more are not cached

logger = logging.getLogger("ldm")


def chosen_indices(count: int, most: int, seed: int) -> list[int]:
    """The numbers of all `count` images, or of `most` of them drawn by the seed, in their order."""
    if count <= most:
        return list(range(count))
    return np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(count)[:most]).tolist()


def features_of(
    extractor: Extractor,
    data: ImageData,
    indices: Sequence[int],
    *,
    batch_size: int,
    label: str = "features",
    processes: Processes = SINGLE_PROCESS,
) -> Tensor:
    """Features (N, D) of these images of `data` on the extractor's device, read batch by batch or from the cache.

    Of several processes the first has them all, the others those of their own batches, or none.
    """
    device = extractor.device
    key = {
        "version": VERSION,
        "extractor": [extractor.name, extractor.dim, extractor.preprocessing, device.type],
        "data": [data.fingerprint, data.split, data.image_size],
        "indices": hashlib.sha256(np.asarray(indices, dtype=np.int64).tobytes()).hexdigest(),
    }
    path = cache_folder() / "features" / f"{fingerprint(key)[:32]}.npz"
    parts = _Parts(path.with_suffix(".parts"), extractor.dim)
    if processes.run_on_main_and_broadcast(lambda: _read(path, (len(indices), extractor.dim)) is not None):
        parts.remove()
        cached = _read(path, (len(indices), extractor.dim)) if processes.is_main else None
        return torch.empty(0, extractor.dim, device=device) if cached is None else cached.to(device)
    batches = []
    starts = processes.batch_starts(len(indices), batch_size)
    for start in progress(starts, label) if processes.is_main else starts:
        chosen = indices[start : start + batch_size]
        stored = parts.read(start, len(chosen))
        if stored is None:
            stored = extractor(torch.stack([data[int(i)].image for i in chosen]))
            parts.write(start, stored)
        batches.append((start, stored.to(device)))
    if processes.count > 1:
        gathered = processes.gather([(start, features.cpu()) for start, features in batches])
        everyones = [(start, features.to(device)) for shard in gathered for start, features in shard]
        batches = sorted(everyones, key=lambda part: part[0]) if processes.is_main else batches
    features = torch.cat([part for _, part in batches]) if batches else torch.empty(0, extractor.dim, device=device)
    if processes.is_main and features.numel() * features.element_size() <= _MOST:
        try:
            save_archive(path, {"features": features.cpu().numpy()})
        except OSError as error:
            logger.warning("the features could not be written to %s (%s)", path.parent, error.strerror)
    if processes.is_main:
        parts.remove()
    return features


class _Parts:
    """Features of finished batches, for a call that is stopped to go on from; none where they cannot be written."""

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder, self.dim = folder, dim

    def read(self, start: int, count: int) -> Tensor | None:
        """The batch of `count` images from this one on, if it is there."""
        path = self._path(start, count)
        try:
            features = read_tensors(path)["features"] if path.is_file() else None
        except UserError:
            return None
        return features if features is not None and features.shape == (count, self.dim) else None

    def write(self, start: int, features: Tensor) -> None:
        with contextlib.suppress(OSError):
            save_tensors(self._path(start, len(features)), {"features": features})

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, start: int, count: int) -> Path:
        return self.folder / f"{start:08d}-{count}.safetensors"


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The cached features; None where there are none, or they are damaged."""
    try:
        cached = Archive(path)
        return torch.from_numpy(cached.read("features")) if cached.shapes.get("features") == shape else None
    except UserError:
        return None
