"""What a list or the files beside the images say about them, by the images' paths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ldm.data.report import PassedOver
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable


@dataclass
class Annotations:
    """Labels and captions of images, in the order in which the images are listed."""

    source: str  # for messages: "metadata.jsonl"
    parents: tuple[str, ...] = ("",)  # the sub-folders that the lists are about, "" or "a/b/"
    names: dict[str, int] = field(default_factory=dict)  # image -> line of its first row
    labels: dict[str, int | str] = field(default_factory=dict)
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rows: int = 0
    how: str = ""  # what was read of the rows: 'images in column "file_name", ...'
    passed_over: list[PassedOver] = field(default_factory=list)
    says_unlabelled: bool = False  # it could have labels and states that it has none

    def covers(self, name: str) -> bool:
        """Whether a list is about the folder of this image."""
        return name.startswith(self.parents)

    def spans(self, parent: str, classes: Iterable[str]) -> bool:
        """Whether a list is about several of these sub-folders of `parent`, rather than one list about each."""
        return any(f"{parent}{name}/".startswith(own) and own != f"{parent}{name}/" for own in self.parents
                   for name in classes)  # fmt: skip

    def set_parent(self, parent: str) -> None:
        """The list lies in this sub-folder, and is about it unless it names an image outside."""
        self.parents = (parent if all(name.startswith(parent) for name in self.names) else "",)

    def add_captions(self, name: str, texts: Iterable[str]) -> None:
        """More captions of an image; blank ones and repetitions are left out."""
        own = self.captions.get(name, ())
        texts = [text for text in texts if text.strip()]
        if own or texts:
            self.captions[name] = tuple(dict.fromkeys((*own, *texts)))


def merged(parts: list[Annotations]) -> Annotations | None:
    """Several lists as one; `UserError` where two of them give captions, or labels, of one image."""
    if len(parts) < 2:
        return parts[0] if parts else None
    more = f"{len(parts) - 1} more" if len(parts) > 2 else parts[1].source
    whole = Annotations(f"{parts[0].source} and {more}", (), rows=sum(part.rows for part in parts))
    givers: dict[tuple[str, str], str] = {}
    for part in parts:
        for what, values in (("captions", part.captions), ("labels", part.labels)):
            for name in values:
                other = givers.setdefault((what, name), part.source)
                if other != part.source:
                    problem = f'"{printable(name)}" has {what} in {printable(other)} and in {printable(part.source)}'
                    raise UserError(problem, remedy="name one list by `metadata_file`")
        whole.parents = tuple(dict.fromkeys((*whole.parents, *part.parents)))
        whole.names |= {name: line for name, line in part.names.items() if name not in whole.names}
        whole.labels |= part.labels
        whole.captions |= part.captions
        whole.says_unlabelled |= part.says_unlabelled
    whole.how = "; ".join(dict.fromkeys(part.how for part in parts if part.how))
    whole.passed_over = _summed([item for part in parts for item in part.passed_over])
    return whole


def _summed(items: list[PassedOver]) -> list[PassedOver]:
    """Equal things of several lists as one, with the first example; columns of one name are not added up."""
    kinds: dict[tuple[str, str, bool], list[PassedOver]] = {}
    for item in items:
        kinds.setdefault((item.what, item.reason, item.condition), []).append(item)
    return [
        replace(same[0], count=same[0].count if same[0].what.startswith("column") else sum(item.count for item in same))
        for same in kinds.values()
    ]
