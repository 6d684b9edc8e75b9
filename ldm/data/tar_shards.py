"""Shards in webdataset's layout: tar files in which members of one key (name up to the first dot) form a sample.

A sample has an image (by its ending) and may have .cls (class number or name), .txt (caption) and .json with "label"
and "text". Other members are ignored: nothing is unpickled, extracted or run.
"""

from __future__ import annotations

import logging
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.data.decode import ENDINGS
from ldm.data.listing import MAX_LINE, check_label, check_texts
from ldm.data.packed import Sample, Shard, index_path, read_index, write_index
from ldm.runtime.errors import UserError
from ldm.runtime.schema import parse_json
from ldm.runtime.text import printable

_ANNOTATIONS = ("cls", "txt", "json")
_BLOCK = 512  # bytes: the unit of a tar file
_LONG = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_PACKERS = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}

logger = logging.getLogger("ldm")


class _Member(tarfile.TarInfo):
    """A member whose long names and extra headers are read only up to a limit."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _LONG and not 0 <= self.size <= MAX_LINE:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def read_tar(path: Path) -> Shard:
    """The samples of a shard, from its cached index if there is one; `UserError` for a damaged tar file."""
    index = index_path(path, "tar")
    content = read_index(index)
    if content is None:
        content = _samples(path), ()
        write_index(index, *content)
    return Shard(path, path, *content)


def _samples(path: Path) -> list[Sample]:
    members: dict[str, dict[str, tuple[str, int, int]]] = {}  # key -> ending -> name, offset, size
    ignored: list[str] = []
    for name, offset, size in _members(path):
        pure = PurePosixPath(name)
        stem, _, ending = pure.name.partition(".")
        ending = ending.lower()
        if not stem or stem.startswith("__") or not (f".{ending}" in ENDINGS or ending in _ANNOTATIONS):
            ignored += [name] if stem and pure.suffix.lower() in ENDINGS else []
            continue
        kind = "image" if f".{ending}" in ENDINGS else ending
        sample = members.setdefault(str(pure.with_name(stem)), {})
        if kind in sample:
            problem = f'{printable(path)}: "{printable(name)}" is the second {kind} of its sample'
            raise UserError(problem, remedy="expected one")
        sample[kind] = str(pure), offset, size
    bare = [key for key, sample in members.items() if "image" not in sample]
    for names, what in ((bare, "samples without an image"), (ignored, "images with a dot in their name")):
        if names:
            example = printable(names[0], 80)
            logger.warning("%s: %d %s are left out, such as %s", printable(path), len(names), what, example)
    with_image = [sample for sample in members.values() if "image" in sample]
    with open(path, "rb") as stream:
        return [Sample(*sample["image"], *_annotations(stream, path, sample)) for sample in with_image]


def _members(path: Path) -> list[tuple[str, int, int]]:
    """(name, offset, size) of the regular files of an archive, checked to its end."""
    with open(path, "rb") as stream:
        packer = _PACKERS.get(stream.read(2))
    if packer:
        problem = f"{printable(path)}: compressed by {packer}, so that no image can be read at its offset"
        raise UserError(problem, remedy="unpack it")
    length, members = path.stat().st_size, []
    try:
        with tarfile.open(path, "r:", tarinfo=_Member, errorlevel=2) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # the list would grow with the archive
                if member.offset_data + member.size > length and member.isreg():
                    raise tarfile.ReadError(f"cut short in {printable(member.name, 80)}")
                if member.isreg() and not member.issparse():
                    members.append((member.name, member.offset_data, member.size))
            end = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise UserError(f"{printable(path)}: not a whole tar file ({printable(error, 120)})") from None
    with open(path, "rb") as stream:  # a damaged header ends the archive in silence, as the final zeros do
        stream.seek(end)
        rest = stream.read(2 * _BLOCK)  # an archive ends in two blocks of zeros
        if any(rest) or (length < end and members):
            where = f"byte {end}" if rest else "its end"
            problem = f"{printable(path)}: damaged at {where}: no member's header is there"
            raise UserError(problem, remedy="make the shard again")
    return members


def _annotations(
    stream: Any, path: Path, sample: dict[str, tuple[str, int, int]]
) -> tuple[int | str | None, tuple[str, ...] | None]:
    """Label and captions: those of .cls and .txt, else those of .json."""
    label: int | str | None = None
    texts: tuple[str, ...] | None = None
    for kind in ("json", "txt", "cls"):
        if kind not in sample:
            continue
        name, offset, size = sample[kind]
        where = f"{printable(path)}: {printable(name)}"
        if size > MAX_LINE:
            raise UserError(f"{where}: {size} bytes, more than {MAX_LINE}")
        stream.seek(offset)
        try:
            content = stream.read(size).decode("utf-8-sig").strip()
            row = parse_json(content) if kind == "json" else None
        except ValueError as error:
            raise UserError(f"{where}: not {'valid JSON' if kind == 'json' else 'UTF-8 text'} ({error})") from None
        if kind == "txt":
            texts = (content,)
        elif kind == "cls":
            number = content.isascii() and content.removeprefix("-").isdigit()
            label = check_label(int(content) if number else content, where)
        elif isinstance(row, dict):
            label = None if row.get("label") is None else check_label(row["label"], where)
            texts = None if row.get("text") is None else check_texts(row["text"], where)
    return label, texts
