"""How close is a reconstruction to its original: PSNR and SSIM, one number an image.

Images are (B, C, H, W) in [-1, 1]; values outside that range are clipped, as they are when an image is saved.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_RANGE = 2.0  # width of [-1, 1]
_WINDOW = 11
_SIGMA = 1.5


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,): 10 log10(range^2 / MSE); infinite for identical images."""
    a, b = _pair(images, originals)
    mse = (a - b).square().flatten(1).mean(1)  # (B,)
    return 10.0 * torch.log10(_RANGE**2 / mse)


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Mean structural similarity, (B,), in [-1, 1].

    Wang et al. 2004, eq. 13 with K1 = 0.01, K2 = 0.03 and an 11 x 11 Gaussian window of sigma 1.5, taken at the
    positions where the window fits (as in the authors' code) and averaged over positions and colour channels.
    """
    a, b = _pair(images, originals)
    a, b = a + 1, b + 1  # the luminance term is for intensities from zero up
    if min(a.shape[-2:]) < _WINDOW:
        raise ValueError(f"ssim expects images of at least {_WINDOW} x {_WINDOW} pixels, got {tuple(a.shape)}")
    c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    n, c = a.shape[:2]
    moments = _window_mean(torch.cat([a, b, a * a, b * b, a * b], dim=1))  # (B, 5C, H-10, W-10)
    mu_a, mu_b, aa, bb, ab = moments.view(n, 5, c, *moments.shape[-2:]).unbind(1)
    var_a, var_b, cov = aa - mu_a**2, bb - mu_b**2, ab - mu_a * mu_b
    index = ((2 * mu_a * mu_b + c1) * (2 * cov + c2)) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return index.flatten(1).mean(1)


def _window_mean(x: Tensor) -> Tensor:
    """Weighted local mean under the Gaussian window, as two one-dimensional convolutions."""
    channels = x.shape[1]
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel = (weights / weights.sum()).to(x.device, x.dtype).expand(channels, 1, 1, _WINDOW)
    x = F.conv2d(x, kernel, groups=channels)
    return F.conv2d(x, kernel.transpose(2, 3), groups=channels)


def _pair(images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    if images.shape != originals.shape or images.ndim != 4:
        shapes = f"{tuple(images.shape)} and {tuple(originals.shape)}"
        raise ValueError(f"expected two batches of one shape (B, C, H, W), got {shapes}")
    if images.dtype != torch.float64 or originals.dtype != torch.float64:
        images, originals = images.float(), originals.float()
    return images.clamp(-1, 1), originals.clamp(-1, 1)
