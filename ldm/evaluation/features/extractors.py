"""Images to features: Inception as clean-fid computes it, or a network that was trained on the data set itself.

Every extractor first rounds images to 8 bits, so that features of tensors equal those of the same images saved as PNG.
"""

from __future__ import annotations

import hashlib
import io
import os
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.dataset import ImageData
from ldm.evaluation.features.small_network import NetworkMetadata, SmallNetwork, fit_size
from ldm.evaluation.features.train_network import safe_name, trained_network
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write
from ldm.runtime.images import to_uint8

# The TorchScript file that StyleGAN2-ADA published and clean-fid uses. Loading TorchScript can run code, so no file
# with another content is ever opened, wherever it lies.
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_BYTES = 95_607_719
INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_FILE}"
_NAMES = {"fid": "FID", "kid": "KID", "sliced_fid": "sliced FID", "fid_infinity": "FID at infinity"}


class Extractor:
    """Images (B, 3, H, W) in [-1, 1] of any size to features (B, dim), on the extractor's device."""

    name: str  # inert in file names and terminals
    dim: int
    preprocessing: str
    device = torch.device("cpu")

    def __call__(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class InceptionExtractor(Extractor):
    """The 2048 pool features of clean-fid's mode "clean": bicubic antialiased resize to 299, clipped to 0..255."""

    name = "inception"
    dim = 2048
    preprocessing = "8 bits, bicubic antialiased resize to 299 x 299 as in clean-fid, clipped to 0..255"

    def __init__(self, network: nn.Module, device: torch.device | str = "auto") -> None:
        self.device = resolve_device(device)
        self.layers = network.to(self.device).eval().layers

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = to_uint8(images.to(self.device)).float()
        x = F.interpolate(pixels, (299, 299), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
        return self.layers((x - 128) / 128).flatten(1).float()  # type: ignore[operator]


class TrainedExtractor(Extractor):
    """Features of a small network that was trained on the data set; its name has the data and the weights."""

    def __init__(self, network: SmallNetwork, metadata: NetworkMetadata, device: torch.device | str = "auto") -> None:
        self.device = resolve_device(device)
        self.network, self.metadata = network.to(self.device).eval(), metadata
        self.name = f"trained-cnn:{safe_name(metadata.data_name)}:{network.fingerprint()[:8]}"
        self.dim = network.dim
        size = metadata.image_size
        self.preprocessing = f"8 bits, bicubic antialiased resize to {size} x {size} if larger or smaller"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = to_uint8(images.to(self.device)).float().div(127.5).sub(1)
        return self.network.features(fit_size(pixels, self.metadata.image_size))


def figure_name(metric: str, extractor: Extractor) -> str:
    """`FID` and `KID` for Inception features alone; else `FD[...]` and `KD[...]` with the extractor's name."""
    name = _NAMES.get(metric)
    if name is None:
        return f"{metric}[{extractor.name}]"
    return name if extractor.name == InceptionExtractor.name else f"{name.replace('ID', 'D')}[{extractor.name}]"


def trained_extractor(data: ImageData, *, device: torch.device | str = "auto") -> TrainedExtractor:
    """The extractor of a data set: trained once, about 20 s on one core, then read from the user's cache folder."""
    return TrainedExtractor(*trained_network(data, device=device), device=device)


def inception_extractor(
    weights: str | Path | None = None, *, device: torch.device | str = "auto", download: bool = False
) -> InceptionExtractor | None:
    """Inception from the file `weights`, else from where clean-fid keeps it, downloaded with `download`, else None.

    `UserError` if `weights` is absent, or a file is not the published one (by its SHA-256).
    """
    path = Path(weights) if weights is not None else cleanfid_folder() / INCEPTION_FILE
    if not path.is_file():
        if weights is not None:
            remedy = f"Inception weights are the file {INCEPTION_FILE} from {INCEPTION_URL}"
            raise UserError(f"{path}: no such file", remedy=remedy)
        if not download:
            return None
        _download(path)
    if path.stat().st_size != INCEPTION_BYTES:
        raise UserError(f"{path}: {path.stat().st_size} bytes, {INCEPTION_FILE} has {INCEPTION_BYTES}; not opened")
    content = path.read_bytes()
    _check(content, path)
    network = torch.jit.load(io.BytesIO(content), map_location=resolve_device(device))
    return InceptionExtractor(network, device)


def cleanfid_folder() -> Path:
    """Where clean-fid keeps its Inception weights."""
    return Path("." if os.name == "nt" else "/tmp")


def extract(extractor: Extractor, batches: Iterable[Tensor]) -> Tensor:
    """Features (N, D) of a stream of image batches; images are dropped."""
    return torch.cat([extractor(batch) for batch in batches])


def _check(content: bytes, source: object) -> None:
    """`UserError` unless these are the bytes of the published file."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != INCEPTION_SHA256:
        problem = f"{source}: SHA-256 {digest[:12]}..., {INCEPTION_FILE} has {INCEPTION_SHA256[:12]}..."
        raise UserError(problem, remedy="not opened, for such a file can run code")


def _download(path: Path) -> None:
    try:
        with urllib.request.urlopen(INCEPTION_URL, timeout=60) as answer:
            content = answer.read(INCEPTION_BYTES + 1)
    except OSError as error:
        problem = f"{INCEPTION_URL}: download failed ({error})"
        raise UserError(problem, remedy="give the file as `inception_weights`") from None
    _check(content, INCEPTION_URL)
    atomic_write(path, content)
