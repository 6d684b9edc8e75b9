"""Names and folders to data sets."""

from __future__ import annotations

from pathlib import Path

from ldm.data.config import DataConfig
from ldm.data.folder import open_listing
from ldm.data.listing import list_folder, shown
from ldm.data.protocol import ImageData
from ldm.data.shapes import ShapesData
from ldm.data.shards import find_shards, list_shards
from ldm.data.torchvision_sets import SETS, open_torchvision
from ldm.runtime.errors import UserError, suggest

SPLITS = ("train", "validation")
NAMES = ("shapes", *SETS)


def open_data(config: DataConfig, split: str = "train") -> ImageData:
    """The data set that `config` names, every image of it checked; UserError where it cannot be used as a whole."""
    if split not in SPLITS:
        raise UserError(f'unknown split "{split}"', remedy=suggest(split, SPLITS))
    if config.data == "shapes":
        return _shapes(config, split)
    if config.data in SETS:
        return open_torchvision(config, split)
    if "://" in config.data:
        raise UserError(
            "an address",
            remedy="nothing is read over the network, fetch it first",
            setting="data",
            value=shown(config.data),
        )
    if shards := find_shards(config.data):
        return open_listing(list_shards(config, shards), config, split)
    if not Path(config.data).expanduser().exists():
        raise UserError(
            f'`data` "{shown(config.data)}": neither a folder nor a known name', remedy=suggest(config.data, NAMES)
        )
    return open_listing(list_folder(Path(config.data).expanduser()), config, split)


def _shapes(config: DataConfig, split: str) -> ImageData:
    if config.flip or config.crop != "center":
        raise UserError(
            "takes neither `flip` nor `crop` random",
            remedy="for more variety raise `shapes_train`",
            setting="data",
            value="shapes",
        )
    return ShapesData(split, config.image_size, (config.shapes_train, config.shapes_validation), config.shapes_seed)


def other_split(dataset: DataConfig, split: str) -> ImageData | None:
    """The images that the split is not of; None where the data have no others."""
    try:
        return open_data(dataset, "validation" if split == "train" else "train")
    except UserError:
        return None
