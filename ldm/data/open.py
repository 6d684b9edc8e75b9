"""From names, folders and shards to data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ldm.data.config import COLUMN_SETTINGS, FOLDER_SETTINGS, DataConfig
from ldm.data.dataset import ImageData
from ldm.data.decode import VERSION
from ldm.data.folder import list_folder
from ldm.data.listing import Listing
from ldm.data.pixel_data import PixelData
from ldm.data.report import DataReport, PassedOver, count_captions, count_classes
from ldm.data.shapes import SPLITS, ShapesData
from ldm.data.shards import find_shards, list_shards
from ldm.data.torchvision_sets import SETS, open_torchvision
from ldm.data.verify import VerifiedFolder, verify
from ldm.runtime.errors import UserError
from ldm.runtime.files import fingerprint
from ldm.runtime.text import counted, printable, suggest

NAMES = ("shapes", *SETS)


def open_data(config: DataConfig, split: str = "train") -> ImageData:
    """The data set that `config` names, with every image checked; `UserError` where it cannot be used."""
    if split not in SPLITS:
        raise UserError(f'unknown split "{split}"', remedy=suggest(split, SPLITS))
    if config.data in NAMES and (given := config.changed(*COLUMN_SETTINGS, *FOLDER_SETTINGS)):
        raise UserError(f"{config.data} is neither a folder nor shards", setting=given, remedy="leave it out")
    if config.data == "shapes":
        return _shapes(config, split)
    if config.data in SETS:
        return open_torchvision(config, split)
    if "://" in config.data:
        remedy = "nothing is read over the network, fetch it first"
        raise UserError("an address", remedy=remedy, setting="data", value=printable(config.data))
    if shards := find_shards(config.data):
        return open_listing(_without_effect(list_shards(config, shards), config), config, split)
    if not Path(config.data).expanduser().exists():
        problem = f'`data` "{printable(config.data)}": neither a folder nor a known name'
        raise UserError(problem, remedy=suggest(config.data, NAMES))
    return open_listing(list_folder(Path(config.data).expanduser(), config), config, split)


def _without_effect(listing: Listing, config: DataConfig) -> Listing:
    """A listing of shards that names the settings that are for folders alone."""
    given = [
        PassedOver(f"setting (`{name}`)", 1, "is for folders of images, and these are shards", condition=True)
        for name in config.changed(*FOLDER_SETTINGS)
    ]
    passed = (*listing.reading.passed_over, *given)
    return replace(listing, reading=replace(listing.reading, passed_over=passed))


def _shapes(config: DataConfig, split: str) -> ImageData:
    if config.flip or config.crop != "center":
        problem, remedy = "takes neither `flip` nor `crop` random", "for more variety raise `shapes_train`"
        raise UserError(problem, remedy=remedy, setting="data", value="shapes")
    return ShapesData(split, config.image_size, (config.shapes_train, config.shapes_validation), config.shapes_seed)


def other_split(dataset: DataConfig, split: str) -> ImageData | None:
    """The other split of a data set; None if there is none."""
    try:
        return open_data(dataset, "validation" if split == "train" else "train")
    except UserError:
        return None


def open_listing(listing: Listing, config: DataConfig, split: str) -> PixelData:
    """A split of a folder or of shards, with every image checked and a fixed part of the names held out."""
    if config.layout_version > 1:
        listing = with_present_numbers(listing)
    verified = verify(listing, config.image_size, crop=config.crop, max_bad=config.max_bad_images)
    names = [listing.names[index] for index in verified.indices]
    labels = None if listing.labels is None else [listing.labels[index] for index in verified.indices]
    held_out: Collection[str] | None = listing.held_out
    if held_out is None:
        held_out = hold_out(names, config.validation_fraction, labels if config.layout_version > 1 else None)
    rows = [row for row, name in enumerate(names) if (name in held_out) == (split == "validation")]
    if not rows:
        remedy = "give `validation_fraction` above 0" if not held_out else "give a smaller `validation_fraction`"
        remedy = "at least two are needed" if len(names) == 1 else remedy
        if labels and len(set(labels)) == len(labels) > 1 and not held_out:
            remedy = "each is the only one of its class: add images, or leave the labels out"
        raise UserError(f"{printable(config.data)}: no image of {len(names)} is left for {split}", remedy=remedy)
    indices = [verified.indices[row] for row in rows]
    return PixelData(
        config,
        split,
        report=_report(listing, config, verified, names, held_out),
        name=listing.folder.resolve().name,
        pixels=verified,
        rows=rows,
        labels=None if labels is None else [labels[row] for row in rows],
        captions=None if listing.captions is None else [listing.captions[index] for index in indices],
        class_names=listing.class_names,
        file_names=[names[row] for row in rows],
        image_fingerprint=fingerprint([VERSION, *((names[row], verified.digests[row].hex()) for row in rows)]),
    )


def _report(
    listing: Listing, config: DataConfig, verified: VerifiedFolder, names: list[str], held_out: Collection[str]
) -> DataReport:
    count = sum(name in held_out for name in names)
    own = listing.held_out is not None
    how = "the folder's own split" if own else f"`validation_fraction` {config.validation_fraction:g}, by name"
    chosen = verified.indices
    labels = None if listing.labels is None else [listing.labels[index] for index in chosen]
    captions = None if listing.captions is None else [listing.captions[index] for index in chosen]
    captioned, texts = count_captions(captions)
    reading = listing.reading
    if verified.bad:
        reason = f"cannot be read ({verified.bad[0]})"
        reading = replace(reading, passed_over=(*reading.passed_over, PassedOver("image", len(verified.bad), reason)))
    return DataReport(
        config.data,
        reading,
        len(names),
        config.image_size,
        verified.sizes,
        f"{count:,} of them ({how})",
        count_classes(labels, listing.class_names),
        unlabelled=sum(label < 0 for label in labels or ()),
        captioned=captioned,
        captions=texts,
        notes=_copies(names, verified.digests, held_out),
        remarks=(verified.dark,) if verified.dark else (),
    )


def _copies(names: list[str], digests: list[bytes], held_out: Collection[str]) -> tuple[str, ...]:
    """A line about images of the same bytes, if there are any."""
    copies = len(digests) - len(set(digests))
    if not copies:
        return ()
    trained = {digest for name, digest in zip(names, digests, strict=True) if name not in held_out}
    both = sum(digest in trained for name, digest in zip(names, digests, strict=True) if name in held_out)
    text = f"copies: {counted(copies, 'image')} with the bytes of another"
    return (f"{text}; {both:,} of those held out are trained on as well" if both else text,)


def with_present_numbers(listing: Listing) -> Listing:
    """A listing whose classes are numbers with only those that an image has, by the same names."""
    labels, names = listing.labels, listing.class_names
    if labels is None or names != tuple(map(str, range(len(names)))):
        return listing
    present = sorted({label for label in labels if label >= 0})
    number = {-1: -1} | {label: index for index, label in enumerate(present)}
    return replace(
        listing, labels=tuple(number[label] for label in labels), class_names=tuple(names[label] for label in present)
    )


def hold_out(names: list[str], fraction: float, labels: Sequence[int] | None = None) -> set[str]:
    """The names of the validation split: those with a hash below `fraction`, or else the one with the lowest.

    So the split of a file depends on its name alone, and does not change when files are added or removed. But where
    all images of a class would be held out, by their `labels`, the one with the highest hash is not.
    """
    if fraction == 0 or len(names) < 2:
        return set()
    hashes = {name: _hash(name) for name in names}
    last: dict[int, str] = {}  # of each class: the image that is held out last
    for name, label in zip(names, labels or [-1] * len(names), strict=True):
        if label >= 0:
            last[label] = max(last.get(label, name), name, key=hashes.__getitem__)
    free = sorted(set(names) - set(last.values()), key=hashes.__getitem__)
    return {name for name in free if hashes[name] < fraction} or set(free[:1])


def _hash(name: str) -> float:
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
