"""Listed images as training and validation split."""

from __future__ import annotations

import hashlib

from ldm.data.config import DataConfig
from ldm.data.decode import VERSION
from ldm.data.listing import Listing, shown
from ldm.data.pixel_data import PixelData
from ldm.data.verify import verify
from ldm.runtime.errors import UserError
from ldm.runtime.files import fingerprint


def open_listing(listing: Listing, config: DataConfig, split: str) -> PixelData:
    """A split of a folder or of shards: every image checked, a fixed part of the names held out."""
    found = verify(listing, config.image_size, crop=config.crop, max_bad=config.max_bad_images)
    names = [listing.names[place] for place in found.kept]
    held_out = hold_out(names, config.validation_fraction)
    rows = [row for row, name in enumerate(names) if (name in held_out) == (split == "validation")]
    if not rows:
        remedy = "give `validation_fraction` above 0" if not held_out else "give a smaller `validation_fraction`"
        remedy = "at least two are needed" if len(names) == 1 else remedy
        raise UserError(f"{shown(config.data)}: no image of {len(names)} is left for {split}", remedy=remedy)
    places = [found.kept[row] for row in rows]
    return PixelData(
        config,
        split,
        name=listing.folder.resolve().name,
        pixels=found,
        rows=rows,
        labels=None if listing.labels is None else [listing.labels[place] for place in places],
        captions=None if listing.captions is None else [listing.captions[place] for place in places],
        class_names=listing.class_names,
        file_names=[names[row] for row in rows],
        image_fingerprint=fingerprint([VERSION, *((names[row], found.digests[row].hex()) for row in rows)]),
    )


def hold_out(names: list[str], fraction: float) -> set[str]:
    """The names of the validation split: those whose hash is below `fraction`, or the lowest if there is none.

    So each file's side depends on its name alone, and stays when others come and go.
    """
    if fraction == 0 or len(names) < 2:
        return set()
    places = {name: _hash(name) for name in names}
    chosen = {name for name, place in places.items() if place < fraction}
    return chosen or {min(names, key=places.__getitem__)}


def _hash(name: str) -> float:
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
