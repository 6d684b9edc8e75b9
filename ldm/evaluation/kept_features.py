"""Features of real images, computed once: kept in the user's cache folder under what they depend on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.data.protocol import ImageData
from ldm.data.verdicts import cache_folder
from ldm.errors import UserError
from ldm.evaluation.archive import Archive, save_archive
from ldm.evaluation.features import Extractor, extract
from ldm.files import fingerprint
from ldm.progress import progress

VERSION = 1  # raise it when the features of an image change
_MOST = 2**30  # bytes; more are not kept

logger = logging.getLogger("ldm")


def chosen_indices(count: int, most: int, seed: int) -> list[int]:
    """The numbers of all `count` images, or of `most` of them drawn by the seed, in their order."""
    if count <= most:
        return list(range(count))
    return np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(count)[:most]).tolist()


def features_of(
    extractor: Extractor, data: ImageData, indices: Sequence[int], *, batch_size: int, label: str = "features"
) -> Tensor:
    """Features (N, D) of these images of `data` on the extractor's device, read batch by batch or from the cache."""
    device = torch.device(getattr(extractor, "device", "cpu"))
    facts = {
        "version": VERSION,
        "extractor": [extractor.name, extractor.dim, extractor.preprocessing, device.type],
        "data": [data.fingerprint, data.split, data.image_size],
        "indices": hashlib.sha256(np.asarray(indices, dtype=np.int64).tobytes()).hexdigest(),
    }
    path = cache_folder() / "features" / f"{fingerprint(facts)[:32]}.npz"
    shape = (len(indices), extractor.dim)
    if path.is_file():
        try:
            kept = Archive(path)
            if kept.shapes.get("features") == shape:
                return torch.from_numpy(kept.read("features")).to(device)
        except UserError:  # damaged: computed again
            pass

    def batches() -> Iterator[Tensor]:
        for start in progress(range(0, len(indices), batch_size), label):
            yield torch.stack([data[int(i)].image for i in indices[start : start + batch_size]])

    found = extract(extractor, batches())
    if found.numel() * found.element_size() <= _MOST:
        try:
            save_archive(path, {"features": found.cpu().numpy()})
        except OSError as error:
            logger.warning("the features could not be kept in %s (%s)", path.parent, error.strerror)
    return found
