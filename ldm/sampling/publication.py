"""Publishing a model is one transaction: its parts, written beside each other, replace the old ones all or none.

    folder/..publishing.tmp-*  the parts while they are written; of no effect
    folder/.publishing         the parts and their manifest, whole: from here on they are the model
    folder/.publishing/.old    parts that were replaced

The parts move from `.publishing` to their positions one after another. Who opens a folder that was left in between,
by a process that was killed, completes that first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ldm.runtime.checksums import Checksums, KnownChecksums
from ldm.runtime.errors import UserError
from ldm.runtime.files import fsync_path
from ldm.runtime.locks import locked, temporary
from ldm.sampling.model_manifest import MANIFEST, ModelManifest, manifest_of, read_manifest, write_manifest

PENDING, _OLD = ".publishing", ".old"
_PATIENCE = 60.0  # seconds; who reads a folder or publishes in it holds no one up for longer


@contextmanager
def publication(folder: str | Path, *, step: int | None = None, autoencoder: str = "") -> Iterator[Path]:
    """Give an empty folder for the parts of a model, which on success take their positions in `folder`.

    The manifest lists them with this step and the fingerprint of the autoencoder that they were trained on, and the
    other parts that it listed before. On an exception `folder` stays as it was.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    with _staged(root) as staging:
        yield staging
        new, old = manifest_of(staging, step=step, autoencoder=autoencoder), _readable_manifest(root)
        others = {name: entry for name, entry in _others(old, staging).items() if (root / name).is_file()}
        write_manifest(staging, replace(new, files=others | new.files))
        _commit(root, staging, new.files)


@contextmanager
def replaced_parts(folder: str | Path) -> Iterator[Path]:
    """Give an empty folder for some parts of a published model, which replace those of it; its manifest follows.

    This is how a part of a model folder is written, whatever the part. A folder without a manifest stays without.
    """
    root = Path(folder)
    with _staged(root) as staging:
        yield staging
        new, old = manifest_of(staging), read_manifest(root)
        if old is not None:
            names = new.class_names or old.class_names
            write_manifest(staging, replace(old, files=_others(old, staging) | new.files, class_names=names))
        _commit(root, staging, new.files)


def _readable_manifest(root: Path) -> ModelManifest:
    """The manifest of a folder, empty where there is none that can be read: a publication writes it anew."""
    try:
        return read_manifest(root) or ModelManifest()
    except UserError:
        return ModelManifest()


def _others(manifest: ModelManifest, staging: Path) -> Checksums:
    """The entries of parts that are not in the staging folder."""
    return {name: entry for name, entry in manifest.files.items() if not (staging / name.split("/")[0]).exists()}


@contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """While a model folder is read: an interrupted publication is completed first, and none begins meanwhile."""
    root = Path(folder)
    if not root.is_dir():
        yield
        return
    complete(root)
    with locked(root, seconds=_PATIENCE, shared=True):
        yield


def complete(folder: str | Path) -> None:
    """Give the parts of an interrupted publication their positions; where there is none, nothing happens."""
    root = Path(folder)
    if not (root / PENDING).is_dir():
        return
    try:
        with locked(root, seconds=_PATIENCE):
            _take_positions(root)
    except OSError as error:
        problem = f"{root}: its last publication was interrupted and cannot be completed ({error.strerror})"
        raise UserError(problem, remedy="make the folder writable, or train on") from None


@contextmanager
def _staged(root: Path) -> Iterator[Path]:
    complete(root)
    with temporary(root / PENDING, Path.mkdir) as staging:
        yield staging


def _commit(root: Path, staging: Path, files: Checksums) -> None:
    (staging / _OLD).mkdir()
    for path in sorted(staging.rglob("*")):
        fsync_path(path)
    fsync_path(staging)
    with locked(root, seconds=_PATIENCE):
        os.rename(staging, root / PENDING)
        fsync_path(root)
        _take_positions(root)
        KnownChecksums(root).add(files)


def _take_positions(root: Path) -> None:
    """Move what is in `.publishing` to its position, the manifest last; a process may end after each of these lines."""
    pending = root / PENDING
    if not pending.is_dir():
        return  # another process has done it
    listed = _readable_manifest(root).files
    for old in sorted((pending / _OLD).glob("*")):
        _retire(old, root / old.name, listed)
    for new in sorted(pending.iterdir()):
        if new.name not in (MANIFEST, _OLD):
            target, old = root / new.name, pending / _OLD / new.name
            if target.is_dir():
                os.rename(target, old)
            os.rename(new, target)
            _retire(old, target, listed)
    fsync_path(root)
    if (pending / MANIFEST).exists():
        os.rename(pending / MANIFEST, root / MANIFEST)
        fsync_path(root)
    shutil.rmtree(pending)


def _retire(old: Path, target: Path, listed: Collection[str]) -> None:
    """Remove a replaced part; files in it that no publication wrote go into the new one."""
    if not old.exists() or not target.exists():
        return  # there was none, or it is still to be replaced
    for path in sorted(old.iterdir()):
        name = f"{target.name}/{path.name}"
        own = name in listed or any(file.startswith(f"{name}/") for file in listed)
        if not own and not (target / path.name).exists():
            os.rename(path, target / path.name)
    shutil.rmtree(old)
