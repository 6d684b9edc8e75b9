"""Shards in webdataset's layout: tar files in which members of one key (name up to the first dot) form a sample.

A sample has an image and may have a class (.cls), captions (.txt, .cap, .caption) and a .json with both under the usual
names. Nothing is unpacked, unpickled or run. `ldm.data.tar_fields` finds keys and fields in the members' names.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ldm.data.columns import LABELS, TEXTS, Choice, choose, unused_columns
from ldm.data.config import DataConfig
from ldm.data.listing import MAX_LINE, check_label, check_texts
from ldm.data.packed import Sample, Shard, index_path, read_index, write_index
from ldm.data.report import PassedOver, Reading
from ldm.data.tar_fields import Fields, Member, find_samples
from ldm.runtime.errors import UserError
from ldm.runtime.schema import parse_json
from ldm.runtime.text import printable

_BLOCK = 512  # bytes: the unit of a tar file
_MAX_NAME = 4096  # characters of a member's name
_MAX_HEADERS = 64 * 2**20  # bytes of long names and extra headers in one file
_LONG = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_PACKERS = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class _Member(tarfile.TarInfo):
    """A member whose long names and extra headers are read only up to a limit, of one member and of all."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _LONG:
            if not 0 <= self.size <= MAX_LINE:
                raise tarfile.ReadError(f"a header of {self.size} bytes")
            archive.header_bytes = getattr(archive, "header_bytes", 0) + self.size + _BLOCK  # type: ignore[attr-defined]
            if archive.header_bytes > _MAX_HEADERS:  # type: ignore[attr-defined]
                raise tarfile.ReadError(f"more than {_MAX_HEADERS} bytes of long names and extra headers")
        if self.type == tarfile.GNUTYPE_SPARSE:  # whose map of holes may be as long as the file
            raise tarfile.ReadError("a member with holes, made by tar --sparse")
        return super()._proc_member(archive)  # type: ignore[misc]


def read_tar(path: Path, config: DataConfig) -> Shard:
    """The samples of a shard, from its cached index if there is one; `UserError` for a damaged tar file."""
    columns = (config.image_column, config.label_column, config.text_column)
    index = index_path(path, "tar", *columns, *config.tar_fields, str(config.layout_version))
    content = read_index(index)
    if content is None:
        samples, reading = _samples(path, config)
        content = samples, (), reading
        write_index(index, *content)
    return Shard(path, path, *content)


def _samples(path: Path, config: DataConfig) -> tuple[list[Sample], Reading]:
    members, links = _members(path)
    fields = find_samples(members, config, printable(path))
    with open(path, "rb") as stream:
        annotations = _Annotations(stream, path, fields, config)
        samples = [
            Sample(*sample[fields.image_of(sample)], *annotations.of(sample)) for sample in fields.samples.values()
        ]
    passed = [*fields.passed_over, *annotations.passed_over()]
    if links:
        passed.append(PassedOver("link or other special member", len(links), "holds no bytes of its own", links[0]))
    return samples, Reading("tar shards", tuple(annotations.lines), tuple(passed))


def _members(path: Path) -> tuple[list[Member], list[str]]:
    """(name, offset, size) of the regular files of an archive, checked to its end; the names of others but folders."""
    with open(path, "rb") as stream:
        packer = _PACKERS.get(stream.read(2))
    if packer:
        problem = f"{printable(path)}: compressed by {packer}, so that no image can be read at its offset"
        raise UserError(problem, remedy="unpack it")
    length, members, others = path.stat().st_size, [], []
    try:
        with tarfile.open(path, "r:", tarinfo=_Member, errorlevel=2) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # the list would grow with the archive
                if len(member.name) > _MAX_NAME:
                    raise tarfile.ReadError(f"a name of {len(member.name)} characters")
                if member.offset_data + member.size > length and member.isreg():
                    raise tarfile.ReadError(f"cut short in {printable(member.name, 80)}")
                if member.isreg() and not member.issparse():
                    members.append((member.name, member.offset_data, member.size))
                elif not member.isdir():
                    others.append(member.name)
            end = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{printable(path)}: not a whole tar file ({printable(error, 120)})") from None
    with open(path, "rb") as stream:  # a damaged header ends the archive in silence, as the final zeros do
        stream.seek(end)
        rest = stream.read(2 * _BLOCK)  # an archive ends in two blocks of zeros
        if any(rest) or (length < end and members):
            where = f"byte {end}" if rest else "its end"
            problem = f"{printable(path)}: damaged at {where}: no member's header is there"
            raise UserError(problem, remedy="make the shard again")
    return members, others


class _Annotations:
    """Labels and captions of the samples of a shard: of their own members, else of the .json."""

    def __init__(self, stream: BinaryIO, path: Path, fields: Fields, config: DataConfig) -> None:
        self.stream, self.path, self.fields = stream, path, fields
        self.lines = list(fields.lines)
        self.keys: Counter[str] = Counter()  # of all .json members
        self.rows: dict[str, dict[str, Any]] = {}  # by the .json member's name: what may be a label or a caption
        self.no_objects: list[str] = []
        usual_keys = {*LABELS, *TEXTS, config.label_column, config.text_column}
        for sample in fields.samples.values():
            for field in fields.json:
                if field in sample:
                    self._read_json(sample[field], usual_keys)
        self.text = self._choose("text", config.text_column, TEXTS, fields.texts, config)
        self.label = self._choose("label", config.label_column, LABELS, fields.labels, config)

    def _choose(
        self, kind: str, given: str, usual: tuple[str, ...], own: tuple[str, ...], config: DataConfig
    ) -> Choice:
        """The key of the .json; none where members of their own hold it."""
        if config.layout_version == 1:
            return Choice(kind)
        if own or (given and given in self.fields.known):
            return Choice("")
        choice = choose(kind, given, usual, list(self.keys), f"{printable(self.path)}: its .json")
        if choice.line:
            self.lines.append(choice.line.replace("in column", "in .json, key", 1))
        return choice

    def _read_json(self, member: Member, usual_keys: set[str]) -> None:
        try:
            row = parse_json(self._text(member))
        except ValueError as error:
            raise UserError(f"{self._where(member)}: not valid JSON ({printable(error, 120)})") from None
        if not isinstance(row, dict):
            self.no_objects.append(member[0])
            return
        self.keys.update(row)
        self.rows[member[0]] = {
            key: value
            for key, value in row.items()
            if value is not None and (key in usual_keys or key.lower() in usual_keys)
        }

    def of(self, sample: Mapping[str, Member]) -> tuple[int | str | None, tuple[str, ...] | None]:
        """Label and captions of a sample."""
        label: int | str | None = None
        texts: tuple[str, ...] = ()
        for field in self.fields.json:
            row = self.rows.get(sample[field][0], {}) if field in sample else {}
            where = self._where(sample[field]) if row else ""
            if self.label.column in row:
                label = check_label(row[self.label.column], where)
            if self.text.column in row:
                texts = check_texts(row[self.text.column], where)
        own = [self._text(sample[field]) for field in self.fields.texts if field in sample]
        texts = tuple(dict.fromkeys(own)) or texts
        for field in self.fields.labels:
            if field in sample:
                content = self._text(sample[field])
                number = content.isascii() and content.removeprefix("-").isdigit() and len(content) < 20
                label = check_label(int(content) if number else content, self._where(sample[field]))
        return label, texts or None

    def passed_over(self) -> list[PassedOver]:
        """Keys of the .json that are not used, and .json that are no objects."""
        choices = [Choice(""), self.label, self.text]
        has_own = bool(self.fields.texts or self.fields.labels)
        passed = unused_columns(choices, list(self.keys)) if self.keys else []
        if has_own:  # a condition was found: other keys are no loss
            passed = [item if item.what.startswith("column (") and not item.condition else PassedOver(
                item.what, item.count, "the members of their own are read instead (`text_column`, `label_column`)"
            ) for item in passed]  # fmt: skip
        if self.no_objects:
            passed.append(
                PassedOver(".json member", len(self.no_objects), "no object with keys", self.no_objects[0], True)
            )
        return passed

    def _text(self, member: Member) -> str:
        _, offset, size = member
        if size > MAX_LINE:
            raise UserError(f"{self._where(member)}: {size} bytes, more than {MAX_LINE}")
        self.stream.seek(offset)
        try:
            return self.stream.read(size).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{self._where(member)}: not UTF-8 text ({error})") from None

    def _where(self, member: Member) -> str:
        return f"{printable(self.path)}: {printable(member[0])}"
