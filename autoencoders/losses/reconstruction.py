"""How far a reconstruction is from its image: mean over the batch, all pixels and all channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def l1(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute error."""
    return F.l1_loss(reconstruction, images)


def l2(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error, without the half."""
    return F.mse_loss(reconstruction, images)


def huber(images: Tensor, reconstruction: Tensor, delta: float) -> Tensor:
    """Mean of e^2 / 2 for errors |e| up to `delta`, and of delta * (|e| - delta / 2) beyond (Huber 1964)."""
    return F.huber_loss(reconstruction, images, delta=delta)
