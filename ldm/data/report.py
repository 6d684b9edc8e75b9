"""What was read of a data set, how it was understood, and everything that was passed over, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ldm.runtime.text import counted, printable

_LISTED = 12  # classes that are named
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class PassedOver:
    """Something of one kind that is not used. `what` is in the singular: "file ending .pdf"."""

    what: str
    count: int
    reason: str
    example: str = ""
    condition: bool = False  # it looks like labels or captions, so that its loss is a warning

    def line(self) -> str:
        """`3 files ending .pdf: no image format, such as "a.pdf"`; settings stand in backticks."""
        example = f', such as "{printable(self.example, 80)}"' if self.example else ""
        return f"{counted(self.count, printable(self.what))}: {printable(self.reason, 300)}{example}"


@dataclass(frozen=True)
class Reading:
    """How a reader understood what lies there."""

    layout: str = ""  # "class folders", "metadata.jsonl"
    fields: tuple[str, ...] = ()  # columns and files that are used, each with how it was chosen
    passed_over: tuple[PassedOver, ...] = ()


NOTHING_PASSED_OVER = Reading()


@dataclass(frozen=True)
class DataReport:
    """The block of lines that is printed before work on a data set begins."""

    source: str
    reading: Reading
    images: int  # of all splits
    image_size: int  # that they are brought to
    sizes: tuple[Size, Size] | None  # the smallest and the largest, as they are stored; None: drawn in any size
    held_out: str
    classes: tuple[tuple[str, int], ...] = ()  # with their numbers of images
    unlabelled: int = 0
    captioned: int = 0  # images with a caption
    captions: int = 0
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()  # warnings beside those about conditions that are not used

    def with_note(self, line: str) -> DataReport:
        """The same with one more line at its end, such as the tokens of the captions."""
        return replace(self, notes=(*self.notes, line))

    def with_warning(self, line: str) -> DataReport:
        """The same with one more warning."""
        return replace(self, remarks=(*self.remarks, line))

    def lines(self) -> list[str]:
        """The block, safe to print; settings stand in backticks."""
        lines = [f"data: {printable(self.source)}" + (f" ({self.reading.layout})" if self.reading.layout else "")]
        lines.append(f"  images: {self.images:,}{self._sizes()}")
        lines.append(f"  held out: {self.held_out}")
        lines.append(f"  classes: {self._classes()}")
        lines.append(f"  captions: {self._captions()}")
        lines += [f"  read: {field}" for field in self.reading.fields]
        lines += [f"  not used: {item.line()}" for item in self.reading.passed_over if not item.condition]
        return [printable(line, None) for line in [*lines, *(f"  {note}" for note in self.notes)]]

    def warnings(self) -> list[str]:
        """What nobody should overlook, a line each."""
        lines = [f"not used: {item.line()}" for item in self.reading.passed_over if item.condition]
        if 0 < self.captioned < self.images:
            without = f"{self.images - self.captioned:,} of {self.images:,} images"
            lines.append(f"without a caption: {without}, which are read with an empty one")
        if self.unlabelled and self.classes:
            lines.append(f"without a class: {self.unlabelled:,} of {self.images:,} images")
        return [printable(line, None) for line in (*lines, *self.remarks)]

    def _sizes(self) -> str:
        if self.sizes is None:
            return f", drawn at {self.image_size} x {self.image_size} pixels"
        (low, high), own = self.sizes, self.image_size
        text = f" of {_by(low)} pixels" if low == high else f" from {_by(low)} to {_by(high)} pixels"
        if low == high == (own, own):
            return text
        changes = [f"enlarged up to {own / min(low):.2g} times"] * (min(low) < own)
        changes += [f"shrunk up to {min(high) / own:.2g} times"] * (min(high) > own)
        more = f"; `image_size` {min(low)} would keep all" if min(low) >= 2 * own else ""
        return f"{text}, used at {own} x {own} ({' or '.join(changes) or 'cropped'}{more})"

    def _classes(self) -> str:
        if not self.classes:
            return "none"
        named = ", ".join(f"{printable(name, 40)} {count:,}" for name, count in self.classes[:_LISTED])
        counts = [count for _, count in self.classes]
        if len(counts) > _LISTED:
            named += f", ... ({min(counts):,} to {max(counts):,} images each)"
        empty = [name for name, count in self.classes if not count]
        return f"{len(counts):,}: {named}" + (f"; {len(empty):,} of them without an image" if empty else "")

    def _captions(self) -> str:
        if not self.captions:
            return "none"
        text = f"{self.captioned:,} of {self.images:,} images have one"
        return text if self.captions == self.captioned else f"{text}, {self.captions:,} captions in all"


def count_classes(labels: Sequence[int] | None, names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Each class with its number of images."""
    counts = Counter(labels or ())
    return tuple((name, counts[label]) for label, name in enumerate(names))


def count_captions(captions: Sequence[tuple[str, ...]] | None) -> tuple[int, int]:
    """How many images have a caption that is not blank, and how many such captions there are."""
    counts = [sum(bool(text.strip()) for text in texts) for texts in captions or ()]
    return sum(count > 0 for count in counts), sum(counts)


def grouped_by_ending(names: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """(what, count, example) of files, by the ending of their names."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, dot, ending = name.rsplit("/", 1)[-1].rpartition(".")
        groups.setdefault(f".{ending.lower()}" if dot and stem else "", []).append(name)
    for ending, members in sorted(groups.items()):
        yield f"file ending {ending}" if ending else "file without an ending", len(members), members[0]


def _by(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
