"""Data sets: built-in shapes, folders and shards of images, torchvision's small sets; the cache of their latents."""

from ldm.data.config import DataConfig
from ldm.data.dataset import Batch, Example, ImageData, collate
from ldm.data.open import open_data

__all__ = ["Batch", "DataConfig", "Example", "ImageData", "collate", "open_data"]
