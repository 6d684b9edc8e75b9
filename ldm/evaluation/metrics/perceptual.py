"""Distances between images in the features of a frozen network: LPIPS, or a network of the data set itself."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from autoencoders.losses import feature_distance
from autoencoders.losses.perceptual import Distance
from autoencoders.weight_file import not_finite, refuse
from ldm.evaluation.features.small_network import SmallNetwork, fit_size
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import sha256_of_file
from ldm.runtime.tensors import read_tensors

# The files that torchvision publishes; a part of the name is the beginning of the SHA-256.
BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
_LIMIT = 2**30  # bytes; the larger of them has 553 million


class TrainedFeatures:
    """Distance (B,) of images (B, 3, H, W) in the maps of a network that was trained on the data set."""

    def __init__(self, network: SmallNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        size = self.network.image_size
        return feature_distance(lambda images: self.network.maps(fit_size(images, size)), a, b)


def lpips_distance(kind: str, weights: str | None = None, *, device: torch.device | str = "auto") -> Distance:
    """LPIPS (Zhang et al. 2018) as the lpips package computes it, of images (B, 3, H, W) in [-1, 1]: (B,).

    With the backbone `kind` ("vgg" or "alex") from the file `weights` or from torch hub's cache.
    `UserError` names both places where there is no such file, or another; nothing is downloaded.
    """
    state = _backbone(backbone_file(kind, weights), kind)
    import lpips  # slow to import, and only needed here

    with torch.random.fork_rng(devices=[]):
        network = lpips.LPIPS(net=kind, pretrained=True, pnet_rand=True, verbose=False)
    with torch.no_grad():
        for name, parameter in network.net.named_parameters():  # slice2.4.weight is features.4.weight there
            number, part = name.split(".")[1:]
            parameter.copy_(state[f"features.{number}.{part}"])
    network.to(resolve_device(device)).eval().requires_grad_(False)
    return lambda a, b: network(a, b).flatten()


def backbone_file(kind: str, weights: str | None = None) -> Path:
    """Where the weights of a backbone are; `UserError` where they are not."""
    cache = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[kind]
    path = Path(weights) if weights is not None else cache
    if not path.is_file():
        remedy = (
            f"put it in torch hub's cache ({cache}), or give `lpips_weights` FILE; `perceptual` features needs none"
        )
        raise UserError(f"{path}: no such file; LPIPS needs torchvision's {BACKBONES[kind]}", remedy=remedy)
    return path


def _backbone(path: Path, kind: str) -> dict[str, Tensor]:
    """The convolutions in a safetensors file, or in the published file itself, known by its SHA-256."""
    if path.stat().st_size > _LIMIT:
        raise UserError(f"{path}: larger than {_LIMIT} bytes, not {BACKBONES[kind]}")
    if path.suffix == ".safetensors":
        state = read_tensors(path)
    else:
        expected_digest = BACKBONES[kind].removesuffix(".pth").rsplit("-", 1)[1]
        digest = sha256_of_file(path)
        if not digest.startswith(expected_digest):
            problem = f"{path}: SHA-256 {digest[:12]}..., {BACKBONES[kind]} has {expected_digest}..."
            raise UserError(problem, remedy="not opened")
        state = torch.serialization.load(path, map_location="cpu", weights_only=True)
    import torchvision

    with torch.device("meta"):  # without making one
        network = torchvision.models.vgg16() if kind == "vgg" else torchvision.models.alexnet()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for part, parameter in network.features.named_parameters():
        name, shape = f"features.{part}", tuple(parameter.shape)
        if shapes.get(name) != shape:
            problem = f"{path}: {name}: expected shape {shape}, found {shapes.get(name)}"
            raise UserError(problem, remedy=f"give {BACKBONES[kind]}")
    with user_errors():
        refuse(path, not_finite(state))
    return state
