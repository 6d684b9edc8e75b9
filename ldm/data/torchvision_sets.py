"""CIFAR-10, MNIST and Fashion-MNIST through torchvision; their test split is the validation split."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.config import DataConfig
from ldm.data.decode import crop_square, fit
from ldm.data.pixel_data import PixelData
from ldm.data.pixels import RamPixels
from ldm.data.report import DataReport, Reading, count_classes
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

SETS = {"cifar10": "CIFAR10", "mnist": "MNIST", "fashion_mnist": "FashionMNIST"}  # our name -> torchvision's


def open_torchvision(config: DataConfig, split: str) -> PixelData:
    """A split of one of `SETS`, from `data_root`; nothing is downloaded unless `download` is set."""
    from torchvision import datasets  # here, because it takes as long to import as torch

    root = Path(config.data_root).expanduser()
    try:
        stored = getattr(datasets, SETS[config.data])(str(root), train=split == "train", download=config.download)
    except Exception as error:  # absent or damaged files make torchvision raise anything, AssertionError included
        reason = "download failed" if config.download else "not found, or incomplete"
        remedy = "" if config.download else "; name its folder by `data_root`, or give `download`"
        detail = f" ({printable(error, 100)})" if config.download else ""
        raise UserError(f"{reason} in {root}{detail}{remedy}", setting="data", value=config.data) from None
    images = np.asarray(stored.data)  # (N, H, W) or (N, H, W, 3), uint8
    labels = [int(label) for label in stored.targets]
    digest = hashlib.sha256(f"{config.data}/{split}/{images.shape}/".encode() + images.tobytes()).hexdigest()
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    size, stored_size = config.image_size, images.shape[1:3]
    if images.shape[1:3] != (size, size):
        images = np.stack([crop_square(fit(Image.fromarray(image), size)) for image in images])
    names = tuple(name.split(" - ")[0] for name in stored.classes)  # MNIST: "0 - zero"
    report = DataReport(
        config.data,
        Reading(f"torchvision's, the {split} split"),
        len(images),
        size,
        (stored_size, stored_size),
        "its own test split",
        count_classes(labels, names),
    )
    return PixelData(
        config,
        split,
        name=config.data,
        pixels=RamPixels(images.reshape(-1), [(size, size)] * len(images)),
        rows=range(len(images)),
        labels=labels,
        captions=None,
        class_names=names,
        image_fingerprint=digest,
        report=report,
    )
