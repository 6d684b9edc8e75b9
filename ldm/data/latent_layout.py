"""The files of a latent cache.

    folder/latents-00000-of-00012.safetensors    mean (n, F, C, h, w) and, unless the encoder is deterministic, std
    folder/manifest.json                         key, layout, SHA-256 of the shards; written last, marks a whole cache

The metadata of a shard hold its key, its number and the checksums of its rows (`ldm.data.latent_sums`). F is 2 (plain,
mirrored) if the data set flips, else 1. Everything is fp16.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ldm.data.latent_sums import SUMS, ShardCheck, decoded_sums
from ldm.runtime.errors import UserError
from ldm.runtime.files import open_regular, read_json, sha256_of_file
from ldm.runtime.locks import LOCK
from ldm.runtime.schema import convert, parse_json

SHARD_EXAMPLES = 4096
SHARD_BYTES = 2**27  # a shard has fewer examples where they would take more
FORMAT = 1
MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what map_shard may raise
_HEADER_LIMIT = 2**20  # bytes; ours take a few hundred
_OURS = re.compile(r"\.?(latents-\d{5}-of-\d{5}\.safetensors|manifest\.json)(\.tmp-.*)?")


@dataclass(frozen=True)
class Layout:
    """Shard and row of each example's latents."""

    count: int  # examples
    shape: tuple[int, int, int]  # of one latent: C, h, w
    has_flips: bool
    has_std: bool

    def __post_init__(self) -> None:
        sizes = (self.count, *self.shape)
        if len(self.shape) != 3 or not all(isinstance(size, int) and 0 < size < 2**40 for size in sizes):
            raise ValueError(f"expected positive count and shape (C, h, w), got {sizes}")

    @property
    def names(self) -> tuple[str, ...]:
        return ("mean", "std") if self.has_std else ("mean",)

    @property
    def example_bytes(self) -> int:
        return (1 + self.has_flips) * len(self.names) * math.prod(self.shape) * 2

    @property
    def per_shard(self) -> int:
        """Examples in each shard but the last."""
        return max(1, min(SHARD_EXAMPLES, SHARD_BYTES // self.example_bytes))

    @property
    def shards(self) -> int:
        return -(-self.count // self.per_shard)

    def rows(self, shard: int) -> range:
        """The examples of a shard."""
        return range(shard * self.per_shard, min(self.count, (shard + 1) * self.per_shard))

    def path(self, folder: Path, shard: int) -> Path:
        return folder / f"latents-{shard:05d}-of-{self.shards:05d}.safetensors"


class _Manifest(TypedDict):
    format: int
    key: dict[str, Any]
    layout: Layout
    sha256: list[str]


def is_ours(name: str) -> bool:
    """Whether a file name is one of a cache, or of the lock and temporary files of an interrupted run."""
    return name == LOCK or _OURS.fullmatch(name) is not None


def read_manifest(path: Path) -> tuple[Layout, dict[str, Any], list[str]]:
    """Layout, key and the SHA-256 of every shard."""
    try:
        manifest = read_json(path, _Manifest)
    except UserError as error:
        raise UserError(f"{error}: not the manifest of a latent cache", remedy="encode again") from None
    if manifest["format"] != FORMAT:
        problem = f"{path}: a latent cache of format {manifest['format']}, expected {FORMAT}"
        raise UserError(problem, remedy="encode again")
    layout, sums = manifest["layout"], manifest["sha256"]
    if len(sums) != layout.shards:
        raise UserError(f"{path}: expected {layout.shards} checksums, got {len(sums)}", remedy="encode again")
    return layout, manifest["key"], sums


def manifest_of(layout: Layout, key: dict[str, Any], sums: list[str]) -> dict[str, Any]:
    return {"format": FORMAT, "dtype": "float16", "key": key, "layout": asdict(layout), "sha256": sums}


class MappedShard(NamedTuple):
    """A shard's tensors (n, F, C, h, w) as read-only memory maps, and the checksums of its rows."""

    maps: dict[str, np.ndarray]
    check: ShardCheck

    def damaged_row(self) -> int | None:
        """The first row of the shard that differs from its checksums; all are read."""
        rows = (self.check.first_damaged(name, latents) for name, latents in self.maps.items())
        return next((row for row in rows if row is not None), None)


def map_shard(path: Path, layout: Layout, shard: int, key: str | None = None) -> MappedShard:
    """Open a shard; ValueError if the file does not match the layout (and `key`). No latents are read."""
    size = path.stat().st_size
    with open_regular(path) as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(_HEADER_LIMIT, size - 8):
            raise ValueError("no safetensors header")
        header = convert(parse_json(stream.read(length)), dict[str, dict[str, Any]])
    metadata = header.pop("__metadata__", {})
    if key is not None and (metadata.get("key"), metadata.get("shard")) != (key, str(shard)):
        raise ValueError("made with another key")
    sums, count = metadata.get(SUMS), len(layout.rows(shard))
    decoded = None if sums is None else decoded_sums(sums, count, 1 + layout.has_flips, len(layout.names))
    shape = [len(layout.rows(shard)), 1 + layout.has_flips, *layout.shape]
    if set(header) != set(layout.names):
        raise ValueError(f"expected {layout.names}, got {tuple(header)}")
    maps: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        if entry["dtype"] != "F16" or entry["shape"] != shape or last - first != 2 * math.prod(shape):
            raise ValueError(f"{name}: expected F16 {shape}, got {entry['dtype']} {entry['shape']}")
        if not 0 <= first < last <= size - 8 - length:
            raise ValueError("the file is too short")
        maps[name] = np.memmap(path, np.float16, "r", offset=8 + length + first, shape=tuple(shape))
    return MappedShard(maps, ShardCheck(decoded, layout.names))


def whole_shard(path: Path, layout: Layout, shard: int, key: str) -> MappedShard | None:
    """A shard of this key whose rows, all of which are read, are as their checksums; None where there is none."""
    try:
        mapped = map_shard(path, layout, shard, key)
        return mapped if mapped.damaged_row() is None else None
    except MALFORMED:
        return None


def damaged_shards(folder: Path) -> tuple[int, list[str]]:
    """The number of shards of a whole cache, and a text for each that is not as it was written; all are read."""
    layout, _, sha256 = read_manifest(folder / "manifest.json")
    problems = []
    for shard in range(layout.shards):
        path = layout.path(folder, shard)
        try:
            mapped = map_shard(path, layout, shard)
            same = mapped.damaged_row() is None if mapped.check.has_sums else sha256_of_file(path) == sha256[shard]
        except MALFORMED:
            same = False
        problems += [] if same else [f"{path.name} is missing or damaged"]
    return layout.shards, problems
