"""Keys and fields of the members of a tar shard: `a/000.seg.png` is the field `seg.png` of the sample `a/000`.

Webdataset splits a name at its first dot. That is one reading of `0.5_a.jpg`, whose key may also have the dot; the
setting `tar_fields` decides, and without it such a shard is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ldm.data.config import DataConfig
from ldm.data.decode import ENDINGS
from ldm.data.report import PassedOver
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable, suggest

_TEXTS, _LABELS, _JSON = ("txt", "cap", "caption"), ("cls",), ("json",)
_FIRST_VERSION = ("txt", "cls", "json")
_LOOKS_LIKE_A_CONDITION = {
    *_TEXTS,
    *_LABELS,
    *_JSON,
    "text",
    "jsonl",
    "csv",
    "tsv",
    "label",
    "class",
    "xml",
    "npy",
    "yaml",
}

Member = tuple[str, int, int]  # name, offset, size


@dataclass
class Fields:
    """The samples of a shard that have an image, and which fields hold what."""

    samples: dict[str, dict[str, Member]]  # key -> field -> member
    images: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    json: tuple[str, ...]
    known: frozenset[str]  # all fields that the samples have
    lines: list[str] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)

    def image_of(self, sample: Mapping[str, Member]) -> str:
        """The field of a sample's image."""
        return next(name for name in self.images if name in sample)


def find_samples(members: Iterable[Member], config: DataConfig, where: str) -> Fields:
    """The samples of a shard's members; `UserError` where one has two images, or its key can be read in two ways."""
    listed, hidden = tuple(name.lower().lstrip(".") for name in config.tar_fields), []
    groups: dict[str, dict[str, Member]] = {}
    for member in members:
        pure = PurePosixPath(member[0])
        if pure.name.startswith((".", "__")) or not pure.name:
            hidden.append(member[0])
            continue
        key, name = _split(pure.name, listed)
        group = groups.setdefault(str(pure.with_name(key)) if key else str(pure), {})
        if name in group:
            problem = f'{where}: "{printable(member[0])}" is the second {printable(name)} of its sample'
            raise UserError(problem.replace(f"second {name}", f"second {_kind(name)}"), remedy="expected one")
        group[name] = (str(pure), *member[1:])
    known = frozenset(name for group in groups.values() for name in group)
    images = _images(known, listed, config)
    if not listed and config.layout_version > 1:
        _refuse_dots_in_keys(groups, images, config, where)
    _refuse_two_images(groups, images, where)
    samples = {key: group for key, group in groups.items() if any(name in group for name in images)}
    texts, labels, json_fields = _annotations(known, listed, config)
    _refuse_two_captions(samples, texts, config, where)
    fields = Fields(samples, images, texts, labels, json_fields, known)
    for what, names, setting in (("captions", texts, "text_column"), ("classes", labels, "label_column")):
        if names:
            listed_names = ", ".join(f".{printable(name)}" for name in names)
            fields.lines.append(f"{what} in {listed_names} (`{setting}`)")
    fields.passed_over = _passed_over(groups, fields, hidden)
    return fields


def _split(name: str, listed: tuple[str, ...]) -> tuple[str, str]:
    """Key and field of a member's name: at the first dot, or before the longest of the listed fields."""
    key, _, rest = name.partition(".")
    rest = rest.lower()
    if listed and rest not in listed:
        lower = name.lower()
        ends = [own for own in listed if lower.endswith(f".{own}")]
        if ends:
            own = max(ends, key=len)
            return name[: -len(own) - 1], own
    return key, rest


def _is_image(name: str) -> bool:
    return f".{name.rpartition('.')[2]}" in ENDINGS


def _kind(name: str) -> str:
    return "image" if _is_image(name) else name


def _images(known: frozenset[str], listed: tuple[str, ...], config: DataConfig) -> tuple[str, ...]:
    """The fields that are the image of a sample."""
    given = config.image_column.lower().lstrip(".")
    if given and config.layout_version > 1:
        if given not in known:
            raise UserError(
                "no member of a sample has this ending", remedy=suggest(given, known), setting="image_column"
            )
        return (given,)
    own = [name for name in listed if _is_image(name)] if listed else sorted(f for f in known if f".{f}" in ENDINGS)
    return tuple(own)


def _annotations(
    known: frozenset[str], listed: tuple[str, ...], config: DataConfig
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The fields of captions, classes and .json: those of the columns' settings, else by their endings."""
    usual = listed or ((*_TEXTS, *_LABELS, *_JSON) if config.layout_version > 1 else _FIRST_VERSION)
    by_ending: dict[tuple[str, ...], list[str]] = {_TEXTS: [], _LABELS: [], _JSON: []}
    for name in usual:
        for endings, names in by_ending.items():
            if name in known and name.rpartition(".")[2] in endings:
                names.append(name)
    texts, labels, json_fields = by_ending.values()
    if config.layout_version > 1:
        text, label = (name.lower().lstrip(".") for name in (config.text_column, config.label_column))
        texts = [text] if text in known else [] if text else [name for name in texts if name != label]
        labels = [label] if label in known else [] if label else [name for name in labels if name != text]
    return tuple(texts), tuple(labels), tuple(json_fields)


def _refuse_dots_in_keys(
    groups: Mapping[str, Mapping[str, Member]], images: tuple[str, ...], config: DataConfig, where: str
) -> None:
    """A dotted image field beside a plain image is a further field; alone it may be a key with a dot as well."""
    for group in groups.values():
        dotted = [name for name in group if "." in name and _is_image(name)]
        if dotted and not any(name in group for name in images):
            example, ending = group[dotted[0]][0], dotted[0].rpartition(".")[2]
            problem = (
                f'{where}: "{printable(example, 80)}" may be the field {printable(dotted[0], 60)} of a sample, or a key'
            )
            remedy = f"name the fields by `tar_fields`: {printable(dotted[0], 60)}, or {ending} for keys with a dot"
            raise UserError(f"{problem} with a dot", remedy=remedy)


def _refuse_two_images(groups: Mapping[str, Mapping[str, Member]], images: tuple[str, ...], where: str) -> None:
    for group in groups.values():
        several = [name for name in group if name in images]
        if len(several) > 1:
            problem = f'{where}: "{printable(group[several[1]][0])}" is the second image of its sample'
            raise UserError(problem, remedy="expected one; name its ending by `image_column`")


def _refuse_two_captions(
    samples: Mapping[str, Mapping[str, Member]], texts: tuple[str, ...], config: DataConfig, where: str
) -> None:
    """.txt beside .cap in one sample: which one is the caption is not for us to choose, unless both were listed."""
    for sample in samples.values() if len(texts) > 1 and not config.tar_fields else ():
        several = [name for name in texts if name in sample]
        if len(several) > 1:
            problem = f'{where}: "{printable(sample[several[0]][0])}" has a caption in .{several[1]} as well'
            raise UserError(problem, remedy="name one by `text_column`, or both by `tar_fields` to take both")


def _passed_over(groups: Mapping[str, Mapping[str, Member]], fields: Fields, hidden: list[str]) -> list[PassedOver]:
    used = {*fields.images, *fields.texts, *fields.labels, *fields.json}
    passed = []
    bare = [key for key, group in groups.items() if key not in fields.samples and used & group.keys()]
    if bare:
        passed.append(PassedOver("sample without an image", len(bare), "no member with an image's ending", bare[0]))
    unused: dict[str, list[str]] = {}
    for group in groups.values():
        for name, member in group.items():
            if name not in used:
                unused.setdefault(name, []).append(member[0])
    for name, members in sorted(unused.items(), key=lambda item: -len(item[1]))[:20]:
        what = f"member ending .{name}" if name else "member without an ending"
        condition = name.rpartition(".")[2] in _LOOKS_LIKE_A_CONDITION
        reason = "not a field that is read" + (" (`tar_fields`, `text_column`)" if condition or _is_image(name) else "")
        passed.append(PassedOver(what, len(members), reason, members[0], condition))
    if len(unused) > 20:
        passed.append(PassedOver("further kind of members", len(unused) - 20, "not fields that are read"))
    if hidden:
        passed.append(PassedOver("hidden member", len(hidden), 'its name begins with "." or "__"', hidden[0]))
    return passed
