"""Which images to train on, and how they are cut to size."""

from dataclasses import dataclass, fields
from typing import Literal

from ldm.runtime.errors import LARGEST_SEED, UserError, at_least, in_range


@dataclass(frozen=True)
class DataConfig:
    """Which images to train on, and how they are cut to size."""

    data: str = "shapes"
    """Built-in data (shapes, cifar10, mnist, fashion_mnist) or a folder of images: with a list of captions and classes
    (metadata.jsonl, .csv or .parquet, dataset.json, captions_*.json), with a .txt or .caption file beside each image,
    with a sub-folder for each class, any of these together, or none; or shards: a folder of .tar files in webdataset's
    layout or of .parquet files, one such file, or a pattern ('shards/{000..012}.tar'). `ldm info DATA` shows what
    would be read."""
    data_root: str = "data"
    """The folder where torchvision keeps cifar10, mnist and fashion_mnist."""
    download: bool = False
    """Download cifar10, mnist or fashion_mnist into data_root if it is not there."""
    image_size: int = 32
    """Side of the square images in pixels: the shorter side is resized to it, then the longer side is cropped."""
    crop: Literal["center", "random"] = "center"
    """Crop of the longer side in training; validation and cached latents use the centre."""
    flip: bool = False
    """Mirror images left to right in training, half of the time."""
    validation_fraction: float = 0.05
    """The fraction of a folder that is held out, chosen by file name; other data have their own split. An image that is
    the only one of its class is not held out."""
    image_column: str = ""
    """Column with the images (parquet) or their file names (metadata); unset: the usual names."""
    label_column: str = ""
    """Column with the classes, as numbers or names; unset: label, labels, class, category, ..., if there is one."""
    text_column: str = ""
    """Column with one caption or several; unset: text, caption, prompt, en_text, ..., if there is one."""
    metadata_file: str = ""
    """The list of captions and classes of a folder, where its name is not a usual one or there are several: a .jsonl,
    .csv, .tsv, .parquet or .json file in it. none: no list is read."""
    captions_from: str = "auto"
    """Where the captions of a folder are: metadata, its list; files, a .txt or .caption file beside each image; a
    folder with such a file for each image. auto: the list or the files, whichever there is."""
    caption_lines: Literal["auto", "one", "each"] = "auto"
    """A .txt or .caption file of several lines is one caption, or each line is one. auto: such a file is refused."""
    folder_classes: Literal["auto", "yes", "no"] = "auto"
    """Whether sub-folders are classes. auto: if there are several and no list of the whole folder."""
    tar_fields: tuple[str, ...] = ()
    """The members of a sample in a tar shard, by the ends of their names, where these or the keys have dots (seg.png
    caption.txt; jpg for 0.5_a.jpg). Unset: an image, and cls, txt, cap, caption or json, after the first dot."""
    tar_keys: Literal["unique", "per_shard"] = "unique"
    """unique: a key in two shards is refused, for it may be one sample twice. per_shard: each shard has its own."""
    layout_version: Literal[1, 2] = 2
    """The rules by which folders and shards are read; a run that was made by those of version 1 keeps them."""
    max_bad_images: int = 0
    """How many unreadable files of a folder may be left out (they are logged); one more is an error."""
    shapes_train: int = 8192
    """Training images of shapes."""
    shapes_validation: int = 1024
    """Validation images of shapes."""
    shapes_seed: int = 0
    """Seed of the shapes."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 4096:
            raise UserError(f"expected 1 to 4096 pixels, got {self.image_size}", setting="image_size")
        in_range(self, shapes_train=(1, 2**24), shapes_validation=(1, 2**24), shapes_seed=(-LARGEST_SEED, LARGEST_SEED))
        if self.crop not in ("center", "random"):
            raise UserError(f'expected "center" or "random", got "{self.crop}"', setting="crop")
        for name, known in (
            ("folder_classes", ("auto", "yes", "no")), ("caption_lines", ("auto", "one", "each")),
            ("tar_keys", ("unique", "per_shard")), ("layout_version", (1, 2)),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise UserError(f"expected {', '.join(map(str, known))}", setting=name, value=getattr(self, name))
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"expected 0 <= x < 1, got {self.validation_fraction}", setting="validation_fraction")
        at_least(self, max_bad_images=0)

    def changed(self, *names: str) -> list[str]:
        """Those of these settings that have another value than their default."""
        defaults = {field.name: field.default for field in fields(self)}
        return [name for name in names if getattr(self, name) != defaults[name]]


COLUMN_SETTINGS = ("image_column", "label_column", "text_column")
FOLDER_SETTINGS = ("metadata_file", "captions_from", "caption_lines", "folder_classes")
