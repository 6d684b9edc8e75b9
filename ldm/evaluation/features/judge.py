"""A judge: the small network's classification of an image, with its accuracy on held-out real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.features.small_network import ROTATION, NetworkMetadata, SmallNetwork, fit_size
from ldm.evaluation.features.train_network import safe_name, trained_network
from ldm.runtime.device import resolve_device
from ldm.runtime.images import to_uint8


@dataclass(frozen=True, slots=True)
class Score:
    """How many of the `total` images show the expected attribute."""

    right: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else float("nan")

    @property
    def standard_error(self) -> float:
        """Of the share, two right and two wrong added: 0 and 1 are not certain (Agresti and Coull 1998)."""
        share = (self.right + 2) / (self.total + 4)
        return sqrt(share * (1 - share) / (self.total + 4))

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.total + other.total)


class Judge:
    """Predicts attributes or classes of images (B, 3, H, W) in [-1, 1] of any size."""

    def __init__(self, network: SmallNetwork, metadata: NetworkMetadata, device: torch.device | str = "auto") -> None:
        if ROTATION in metadata.heads:
            raise ValueError("a network trained on unlabelled images cannot judge")
        self.device = resolve_device(device)
        self.network, self.metadata = network.to(self.device).eval(), metadata
        self.name = f"judge:{safe_name(metadata.data_name)}:{network.fingerprint()[:8]}"
        self.heads = metadata.heads  # the names of the values of each attribute that it predicts
        self.accuracy = metadata.accuracy  # on held-out real images
        self.class_head = metadata.class_head  # the attribute that stands for the class label, or ""

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> dict[str, Tensor]:
        """(B, K) an attribute."""
        pixels = to_uint8(images.to(self.device)).float().div(127.5).sub(1)
        logits = self.network(fit_size(pixels, self.metadata.image_size))
        return {name: values.softmax(1) for name, values in logits.items()}

    def __call__(self, images: Tensor) -> list[dict[str, str]]:
        """The predicted value of each attribute, an image."""
        predicted = {name: values.argmax(1).tolist() for name, values in self.probabilities(images).items()}
        return [{name: self.heads[name][numbers[i]] for name, numbers in predicted.items()} for i in range(len(images))]

    def score(self, images: Tensor, expected: Sequence[Mapping[str, str]]) -> dict[str, Score]:
        """Compare predictions with the expected attributes; an attribute that is not expected does not count."""
        if len(images) != len(expected):
            raise ValueError(f"expected one mapping an image, got {len(expected)} for {len(images)}")
        scores: dict[str, Score] = {}
        for predicted, attributes in zip(self(images), expected, strict=True):
            for name in self.heads.keys() & attributes.keys():
                scores[name] = scores.get(name, Score()) + Score(int(predicted[name] == attributes[name]), 1)
        return {name: scores[name] for name in self.heads if name in scores}


def trained_judge(data: ImageData, *, device: torch.device | str = "auto") -> Judge | None:
    """The judge of a data set with attributes or labels, from the cache or trained now; None for one without."""
    network, metadata = trained_network(data, device=device)
    return None if ROTATION in metadata.heads else Judge(network, metadata, device)
