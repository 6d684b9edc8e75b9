"""Images of an autoencoder's latents: reconstructions, lines between images, one channel after another moved."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from autoencoders import Autoencoder
from autoencoders.bottlenecks.gaussian import Gaussian
from ldm.data.dataset import ImageData
from ldm.data.selection import even_indices, plain_batches
from ldm.evaluation.metrics.image_quality import psnr
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_folder
from ldm.runtime.images import enlarged, grid, save_png
from ldm.runtime.text import counted

_SHOWN = 8  # images, and pairs of images
_STEPS = 9  # images of a line
_ROWS = 8  # channels that are moved
_SIGMAS = 3.0
_COUNTED = 256  # images over which the activity of a channel is measured


@torch.no_grad()
def write_images(
    model: Autoencoder, data: ImageData, folder: str | Path, *, device: torch.device | str = "auto"
) -> list[str]:
    """reconstructions.png, interpolation.png and traversal.png into a new folder; a line on each.

    What was done is also in the text of each PNG.
    """
    if len(data) < 2:
        problem = f"{data.name}: {counted(len(data), 'image')} in its split {data.split}"
        raise UserError(f"{problem}, images of latents need 2 or more")
    device = resolve_device(device)
    model = model.to(device).eval()
    (images,) = (batch.to(device) for batch in plain_batches(data, even_indices(len(data), 2 * _SHOWN), 2 * _SHOWN))
    sheets = {
        "reconstructions": _reconstructions(model, images[::2]),
        "interpolation": _interpolation(model, images),
        "traversal": _traversal(model, data, images[0], device),
    }
    with atomic_folder(folder) as target:
        for name, (images, columns, text) in sheets.items():
            sheet = enlarged(grid(images, columns), 96 * columns)
            save_png(sheet, target / f"{name}.png", {"ldm": text})
    return [f"{folder}/{name}.png: {text}" for name, (_, _, text) in sheets.items()]


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """On the great circle from `a` (D,) to `b` (D,) at `weight` (T,) in [0, 1], lengths interpolated too: (T, D).

    Shoemake 1985. Where the two are nearly parallel it is the straight line.
    """
    lengths = a.norm(), b.norm()
    cosine = (a @ b / (lengths[0] * lengths[1]).clamp(min=1e-12)).clamp(-1, 1)
    angle = torch.arccos(cosine)
    t = weight[:, None]
    if angle.sin() < 1e-4:
        return (1 - t) * a + t * b
    direction = torch.sin((1 - t) * angle) * a / lengths[0] + torch.sin(t * angle) * b / lengths[1]
    return direction / angle.sin() * ((1 - t) * lengths[0] + t * lengths[1])


def _reconstructions(model: Autoencoder, images: Tensor) -> tuple[Tensor, int, str]:
    restored = model.decode(model.encode(images).mean).float()
    text = f"originals above their reconstructions, {float(psnr(restored, images).mean()):.2f} dB"
    return torch.cat([images, restored]), len(images), text


def _interpolation(model: Autoencoder, images: Tensor) -> tuple[Tensor, int, str]:
    """A row a pair; its ends are the reconstructions of two held-out images."""
    spherical = isinstance(model.quantize, Gaussian)
    latents = model.encode(images).mean.float()
    weight = torch.linspace(0, 1, _STEPS, device=latents.device)
    rows = []
    half = len(latents) // 2
    for a, b in zip(latents[:half], latents[half : 2 * half], strict=True):  # far apart, so of different kinds
        if spherical:
            line = slerp(a.flatten(), b.flatten(), weight).unflatten(1, a.shape)
        else:
            line = torch.lerp(a, b, weight[:, None, None, None])
        rows.append(model.decode(line).float())
    kind = "spherical (slerp)" if spherical else "straight"
    return torch.cat(rows), _STEPS, f"{kind} lines between the calibrated latents of two held-out images a row"


def _traversal(
    model: Autoencoder, data: ImageData, image: Tensor, device: torch.device | str
) -> tuple[Tensor, int, str]:
    """A row a channel, moved at all places at once; a calibrated channel's deviation over the data is 1."""
    batches = plain_batches(data, even_indices(len(data), _COUNTED), 64)
    chosen = torch.cat([model.encode(x.to(device)).mean for x in batches])
    activity = chosen.float().var((0, 2, 3)) * model.latents_std.to(chosen).square()  # (C,), before calibration
    order = activity.argsort(descending=True)[:_ROWS].tolist()
    latent = model.encode(image[None]).mean.float()  # (1, C, h, w)
    moves = torch.linspace(-_SIGMAS, _SIGMAS, _STEPS, device=latent.device)
    rows = []
    for channel in order:
        moved = latent.repeat(_STEPS, 1, 1, 1)
        moved[:, channel] += moves[:, None, None]
        rows.append(model.decode(moved).float())
    channels = ", ".join(map(str, order))
    text = f"the most active channels, {channels}, moved by -3 to 3 standard deviations at all places, one a row"
    return torch.cat(rows), _STEPS, text
