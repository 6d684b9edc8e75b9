"""Latents of a data set, encoded once: posterior mean and standard deviation of every image and of its mirror image."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoencoders import Autoencoder, Tiling
from ldm.data.cache_device import CacheDevice, choose_cache_device
from ldm.data.cache_key import CacheKey, check_cache_folder
from ldm.data.dataset import Batch, ImageData
from ldm.data.latent_layout import (
    MALFORMED,
    Layout,
    MappedShard,
    manifest_of,
    map_shard,
    read_manifest,
    whole_shard,
)
from ldm.data.latent_sums import SUMS, encoded_sums
from ldm.data.selection import image_batches
from ldm.runtime.device import resolve_device
from ldm.runtime.disk import check_free
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, sha256_of_file
from ldm.runtime.locks import LOCK
from ldm.runtime.progress import progress
from ldm.runtime.tensors import save_tensors

RAM_LIMIT = 2**30  # bytes; a cache up to this size is read into memory, a larger one is memory-mapped
_SHARD_AGAIN = "remove this file and manifest.json: only what is missing is encoded again"

logger = logging.getLogger("ldm")


class LatentCache:
    """The latents of a data set by index: on the device, in memory, or in their files (`choose_cache_device`)."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        sha256: Sequence[str],
        device: torch.device,
        cache_device: CacheDevice = "auto",
    ) -> None:
        size = layout.count * layout.example_bytes
        chosen = choose_cache_device(cache_device, device, size, RAM_LIMIT)
        self.folder, self.device, self._layout = folder, chosen or torch.device("cpu"), layout
        self._memory: dict[str, Tensor] = {}
        self._shards: list[MappedShard] = []
        for shard in range(layout.shards):
            path = layout.path(folder, shard)
            try:
                self._shards.append(map_shard(path, layout, shard))
            except MALFORMED as error:
                raise UserError(f"{path}: damaged ({error})", remedy=_SHARD_AGAIN) from None
            without = not self._shards[-1].check.has_sums  # of an earlier version, whose rows cannot be checked alone
            if without and size <= RAM_LIMIT and sha256_of_file(path) != sha256[shard]:
                raise UserError(f"{path}: damaged, its SHA-256 differs", remedy=_SHARD_AGAIN)
            if without and size > RAM_LIMIT and shard == 0:
                logger.info("%s: encoded by an earlier version, without checksums: it is read unchecked", folder)
        if chosen is not None:
            for name in layout.names:
                self._memory[name] = self._concatenated(name)
            self._shards = []

    def _concatenated(self, name: str) -> Tensor:
        """All shards of a moment, (N, F, C, h, w) on the device, without a second copy."""
        shape = (len(self), 1 + self.has_flips, *self.shape)
        whole, row = torch.empty(shape, dtype=torch.float16, device=self.device), 0
        for number, shard in enumerate(self._shards):
            latents = np.array(shard.maps[name])
            if (damaged := shard.check.first_damaged(name, latents)) is not None:
                raise self._damage(number, damaged)
            whole[row : row + len(latents)].copy_(torch.from_numpy(latents))
            row += len(latents)
        return whole

    @classmethod
    def open(
        cls,
        folder: str | Path,
        expected: CacheKey,
        *,
        device: torch.device | str = "auto",
        cache_device: CacheDevice = "auto",
    ) -> LatentCache:
        """Open a whole cache of the key `expected`; otherwise a `UserError` names the differences."""
        folder = Path(folder)
        if not (folder / "manifest.json").is_file():
            state = "is not complete" if folder.is_dir() else "does not exist"
            raise UserError(f"{folder}: the latent cache {state}", remedy="encode the data set (again)")
        layout, key, sums = read_manifest(folder / "manifest.json")
        expected.check(key, f"{folder}: the latent cache")
        for shard in range(layout.shards):
            path = layout.path(folder, shard)
            if not path.is_file():
                raise UserError(f"{path}: missing", remedy=_SHARD_AGAIN)
        return cls(folder, layout, sums, resolve_device(device), cache_device)

    def __len__(self) -> int:
        return self._layout.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, h, w) of one latent."""
        return self._layout.shape

    @property
    def has_flips(self) -> bool:
        return self._layout.has_flips

    @property
    def has_std(self) -> bool:
        return self._layout.has_std

    def moments(self, indices: Sequence[int] | Tensor, flips: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Posterior mean and standard deviation (None for a deterministic encoder): fp16 (B, C, h, w).

        `flips` (B,) bool selects mirrored images. The result is on the device of the cache, or on the CPU if the cache
        stays in its files.
        """
        rows = torch.as_tensor(indices, dtype=torch.int64).cpu()
        sides = torch.zeros_like(rows) if flips is None else flips.to(rows)
        if rows.ndim != 1 or sides.shape != rows.shape:
            raise ValueError(f"expected indices (B,) and flips (B,), got {tuple(rows.shape)} and {tuple(sides.shape)}")
        low, high = (int(rows.min()), int(rows.max())) if len(rows) else (0, 0)
        if low < 0 or high >= len(self):
            raise IndexError(f"expected indices from 0 to {len(self) - 1}, got {low} to {high}")
        if not self.has_flips and bool(sides.any()):
            raise ValueError("this cache has no mirrored latents: its data set does not flip")
        moments = [self._rows(name, rows, sides) for name in self._layout.names]
        return moments[0], moments[1] if self.has_std else None

    def gather(
        self, indices: Sequence[int] | Tensor, flips: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Latents float32 (B, C, h, w): mean + std * noise; the mean if there is no noise or no std."""
        mean, std = self.moments(indices, flips)
        if noise is not None and noise.shape != mean.shape:
            raise ValueError(f"expected noise of shape {tuple(mean.shape)}, got {tuple(noise.shape)}")
        if noise is None or std is None:
            return mean.float()
        return mean.float() + std.float() * noise.to(mean.device)

    def _rows(self, name: str, rows: Tensor, sides: Tensor) -> Tensor:
        if self._memory:
            return self._memory[name][rows.to(self.device), sides.to(self.device)]
        batch = np.empty((len(rows), *self.shape), dtype=np.float16)
        for index, (row, side) in enumerate(zip(rows.tolist(), sides.tolist(), strict=True)):
            number, example = divmod(row, self._layout.per_shard)
            shard = self._shards[number]
            batch[index] = shard.maps[name][example, side]
            if shard.check.is_damaged(name, example, side, batch[index]):
                raise self._damage(number, example)
        return torch.from_numpy(batch)

    def _damage(self, shard: int, row: int) -> UserError:
        path, image = self._layout.path(self.folder, shard), self._layout.rows(shard)[row]
        return UserError(f"{path}: damaged, image {image} differs from its checksum", remedy=_SHARD_AGAIN)


@torch.no_grad()
def encode_latents(
    autoencoder: Autoencoder,
    data: ImageData,
    folder: str | Path,
    *,
    batch_size: int = 64,
    device: torch.device | str = "auto",
    num_workers: int = 0,
    tiling: Tiling | None = None,
    processes: Processes = SINGLE_PROCESS,
    cache_device: CacheDevice = "auto",
) -> LatentCache:
    """Write the latents of all images of `data` to `folder` and open them; `autoencoder` must be on `device`.

    A whole cache of the same key is opened, one of another key is refused. Whole shards of an interrupted run with the
    same key are reused, its other files replaced. A folder that holds anything else is refused. `tiling` saves memory
    and is not part of the key: it changes the latents by less than the rounding of the cache. Several processes, all of
    which must call this, divide the missing shards; they need a common folder.
    """
    folder, device, key = Path(folder), resolve_device(device), CacheKey.of(autoencoder, data)
    if batch_size < 1:
        raise UserError(f"batch size: expected 1 or more, got {batch_size}")
    if data.image_size % autoencoder.factor:
        problem = f"not divisible by the autoencoder's {autoencoder.factor}"
        raise UserError(problem, setting="image_size", value=data.image_size)
    check_cache_folder(folder)
    if processes.run_on_main_and_broadcast(lambda: (folder / "manifest.json").is_file()):
        return LatentCache.open(folder, key, device=device, cache_device=cache_device)

    with processes.lock(folder, "encoding"):
        training = autoencoder.training
        autoencoder.eval()
        try:
            tiling = tiling or Tiling()
            encoding = autoencoder.encode(data[0].image[None].to(device), tiling=tiling)
            channels, height, width = encoding.mean.shape[1:]
            layout = Layout(len(data), (channels, height, width), data.flip, encoding.std is not None)
            missing = processes.run_on_main_and_broadcast(lambda: _begin(folder, layout, key))
            own = missing[processes.rank :: processes.count]

            def encode() -> None:
                for shard, tensors in _encoded(autoencoder, data, layout, own, batch_size, device, num_workers, tiling):
                    metadata = {"key": key.digest(), "shard": str(shard), SUMS: encoded_sums(tensors, layout.names)}
                    save_tensors(layout.path(folder, shard), tensors, metadata)

            processes.run_on_all(encode)
        finally:
            autoencoder.train(training)

        def finish() -> None:
            sums = [sha256_of_file(layout.path(folder, shard)) for shard in range(layout.shards)]
            atomic_write_json(folder / "manifest.json", manifest_of(layout, asdict(key), sums))

        processes.run_on_main_and_broadcast(finish)
    return LatentCache.open(folder, key, device=device, cache_device=cache_device)


def _encoded(
    autoencoder: Autoencoder,
    data: ImageData,
    layout: Layout,
    shards: list[int],
    batch_size: int,
    device: torch.device,
    num_workers: int,
    tiling: Tiling,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield (shard, its tensors (n, F, C, h, w) by name)."""
    plan: list[tuple[int, list[int]]] = []  # (shard, rows) of each batch
    for shard in shards:
        rows = list(layout.rows(shard))
        plan += [(shard, rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    loader = image_batches(data, [rows for _, rows in plan], num_workers)
    parts: list[dict[str, Tensor]] = []
    for batch, (shard, rows) in zip(progress(loader, "encoding latents"), plan, strict=True):
        parts.append(_moments(autoencoder, batch, layout, device, tiling))
        if rows[-1] == layout.rows(shard)[-1]:
            yield shard, {name: torch.cat([part[name] for part in parts]) for name in layout.names}
            parts = []


def _moments(
    autoencoder: Autoencoder, batch: Batch, layout: Layout, device: torch.device, tiling: Tiling
) -> dict[str, Tensor]:
    """Posterior moments (B, F, C, h, w) of a batch, fp16 on the CPU."""
    images = batch.images.to(device)
    sides: dict[str, list[Tensor]] = {name: [] for name in layout.names}
    for side in (images, images.flip(-1)) if layout.has_flips else (images,):
        encoding = autoencoder.encode(side, tiling=tiling)
        for name, moment in (("mean", encoding.mean), ("std", encoding.std)):
            if moment is not None:
                sides[name].append(moment.float())
    moments = {name: torch.stack(values, 1) for name, values in sides.items()}
    halves = {name: moment.to(torch.float16) for name, moment in moments.items()}
    for name, half in halves.items():
        if not bool(half.isfinite().all()):
            bad = int(batch.indices[int((~half.isfinite()).flatten(1).any(1).nonzero()[0])])
            largest = float(moments[name].abs().max())
            problem = f"the latents of image {bad} do not fit into float16 (largest {name} {largest:g})"
            raise UserError(problem, remedy="calibrate the autoencoder, or train it anew if it has diverged")
    return {name: half.cpu() for name, half in halves.items()}


def _begin(folder: Path, layout: Layout, key: CacheKey) -> list[int]:
    """Remove all but the whole shards of an earlier run; return the missing shards."""
    shards = {n: whole_shard(layout.path(folder, n), layout, n, key.digest()) for n in range(layout.shards)}
    whole = {n for n, shard in shards.items() if shard is not None}
    if old := sum(shard is not None and not shard.check.has_sums for shard in shards.values()):
        logger.info("%s: %d shards of an earlier version have no checksums and are taken as they are", folder, old)
    keep = {folder / LOCK, *(layout.path(folder, shard) for shard in whole)}
    for path in folder.iterdir():
        if path not in keep:
            path.unlink()
    missing = [shard for shard in range(layout.shards) if shard not in whole]
    check_free(folder, sum(len(layout.rows(shard)) for shard in missing) * layout.example_bytes, "its latents")
    return missing
