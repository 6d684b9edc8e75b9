"""`ldm info FOLDER --verify`: the files of a model or run folder against the checksums that were written with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ldm.runtime.errors import UserError


def verified(root: Path) -> Iterator[str]:
    """A line for each model and checkpoint in a folder whose files are as they were written; all of them are read.

    At the end `UserError` with all differences; also for a folder in which nothing has checksums.
    """
    from ldm.data.latent_layout import damaged_shards
    from ldm.sampling.model_manifest import MANIFEST, differences, read_manifest
    from ldm.sampling.publication import reading
    from ldm.training.checkpoint import checkpoints, damage

    problems: list[str] = []
    lines = 0
    for folder, name in ((root, "model"), (root / "best", "best/")):
        with reading(folder):
            manifest = read_manifest(folder)
            if manifest is None:
                continue
            differing = differences(folder, manifest)
        problems += [f"{name}: {problem}" for problem in differing]
        if not differing:
            lines += 1
            step = "" if manifest.step is None else f" of step {manifest.step}"
            yield f"verified: {name}{step}, {len(manifest.files)} files as published ({MANIFEST})"
    for checkpoint in checkpoints(root):
        if problem := damage(checkpoint):
            problems.append(f"{checkpoint.name}: {problem}")
        else:
            lines += 1
            yield f"verified: {checkpoint.name}"
    for cache in (root, root / "latents"):
        if (cache / "manifest.json").is_file() and any(cache.glob("latents-*")):
            count, damaged = damaged_shards(cache)
            problems += damaged
            if not damaged:
                lines += 1
                yield f"verified: {count} shards of latents"
    if problems:
        raise UserError(f"{root}: damaged: {'; '.join(problems)}")
    if not lines:
        raise UserError(f"{root}: nothing in it has checksums (it is of an earlier version, or another tool's)")
