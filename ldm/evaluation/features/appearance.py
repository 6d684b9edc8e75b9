"""How images look as a whole: saturation, contrast, clipped values, sharpness, one number each an image.

Guidance that is too strong raises the first three and changes the last; a blurred image is less sharp. None of them is
good or bad by itself: they are to be near those of real images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.evaluation.features.extractors import Extractor
from ldm.runtime.images import to_uint8

MEASURES = ("saturation", "contrast", "clipped", "sharpness")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's "L"


class Appearance(Extractor):
    """Images (B, 3, H, W) in [-1, 1] to the `MEASURES` (B, 4) of their 8-bit form; numbers of colours are in [0, 1].

    saturation: mean of HSV's S. contrast: standard deviation of the luma (both as in Sadat et al. 2024,
    arXiv:2410.02416, section 5). clipped: share of values that are 0 or 255. sharpness: standard deviation of the
    luma's Laplacian (Pech-Pacheco et al. 2000).
    """

    name, dim, preprocessing = "appearance", len(MEASURES), "8 bits"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        values = to_uint8(images.to(self.device)).float() / 255  # (B, 3, H, W)
        low, high = values.amin(1), values.amax(1)  # (B, H, W)
        saturation = torch.where(high > 0, (high - low) / high.clamp(min=1e-6), 0)
        luma = (values * values.new_tensor(_LUMA)[:, None, None]).sum(1)  # (B, H, W)
        inside = luma[:, 1:-1, 1:-1]
        laplacian = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:] - 4 * inside
        clipped = ((values == 0) | (values == 1)).float()
        return torch.stack([
            saturation.mean((1, 2)),
            luma.std((1, 2), correction=0),
            clipped.mean((1, 2, 3)),
            laplacian.std((1, 2), correction=0),
        ], dim=1)  # fmt: skip
