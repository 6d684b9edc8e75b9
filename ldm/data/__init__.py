"""Data sets: built-in shapes, folders and shards of images, torchvision's small sets; the cache of their latents."""

from ldm.data.config import DataConfig
from ldm.data.open import open_data
from ldm.data.protocol import Batch, Example, ImageData, collate

__all__ = ["Batch", "DataConfig", "Example", "ImageData", "collate", "open_data"]
