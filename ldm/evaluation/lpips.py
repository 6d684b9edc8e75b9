"""LPIPS (Zhang et al. 2018, arXiv:1801.03924) where the weights of its backbone are on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ldm.errors import UserError

_FILE = "vgg16-397923af.pth"  # as torch hub names it: with the first digits of its SHA-256
_URL = f"https://download.pytorch.org/models/{_FILE}"


def perceptual_distance(
    weights: str | Path | None, *, device: torch.device | str = "cpu", needed: bool = False
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS with VGG-16, of two batches of images (B, 3, H, W) in [-1, 1]: (B,).

    The backbone is read from the file `weights`, else from torch hub's cache; nothing is downloaded. Without it None,
    or a `UserError` where the file was named or the distance is `needed`; also for a file that is not the published.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints" / _FILE
    path = Path(weights) if weights is not None else cache
    if not path.is_file():
        if weights is None and not needed:
            return None
        place = f"--lpips-weights {weights}: no such file" if weights is not None else "--metrics lpips"
        raise UserError(f"{place}; LPIPS needs {_FILE} (from {_URL}) in {cache.parent}, or as --lpips-weights FILE")
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(_FILE.split("-")[1].split(".")[0]):
        raise UserError(f"{path}: SHA-256 {digest[:8]}..., {_FILE} has {_FILE[6:14]}...; not opened")
    return _load(path, device)


def _load(path: Path, device: torch.device | str) -> Callable[[Tensor, Tensor], Tensor]:
    import lpips

    with torch.random.fork_rng(devices=[]):  # the backbone is made with random weights first
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = torch.hub.load_state_dict_from_url(
        _URL, model_dir=str(path.parent), file_name=path.name, map_location="cpu", progress=False, weights_only=True
    )  # of a file that is there it reads that
    for part in (getattr(network.net, f"slice{number}") for number in range(1, 6)):
        own = {name: state[f"features.{name}"] for name in part.state_dict()}
        part.load_state_dict(own)
    network = network.to(device).eval().requires_grad_(False)
    return lambda a, b: network(a, b).flatten()
