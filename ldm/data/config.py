"""Which images to train on, and how they are cut to size."""

from dataclasses import dataclass
from typing import Literal

from ldm.runtime.errors import UserError, at_least


@dataclass(frozen=True)
class DataConfig:
    """Which images to train on, and how they are cut to size."""

    data: str = "shapes"
    """Built-in data (shapes, cifar10, mnist, fashion_mnist) or a folder of images: with metadata.jsonl or metadata.csv
    (file_name, text, label), else with a sub-folder for each class, else without labels; or shards: a folder of .tar
    files in webdataset's layout or of .parquet files, one such file, or a pattern ('shards/{000..012}.tar')."""
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
    """The fraction of a folder that is held out, chosen by file name; other data have their own split."""
    image_column: str = ""
    """Column of a parquet file that holds the images; unset: image, img, jpg or png."""
    label_column: str = ""
    """Column with the classes, as numbers or names; unset: label, labels, class or fine_label, if there is one."""
    text_column: str = ""
    """Column with one caption or several; unset: text or caption, if there is one."""
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
        if self.crop not in ("center", "random"):
            raise UserError(f'expected "center" or "random", got "{self.crop}"', setting="crop")
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"expected 0 <= x < 1, got {self.validation_fraction}", setting="validation_fraction")
        at_least(self, max_bad_images=0)
