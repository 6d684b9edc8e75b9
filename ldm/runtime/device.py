"""Which device to compute on."""

from __future__ import annotations

import torch

from ldm.runtime.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one, else Apple's, else the CPU; a device that is absent is a `UserError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; known: auto, cuda, mps, cpu") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device.type not in available:
        raise UserError(f"--device {name}: unknown; known: auto, cuda, mps, cpu")
    if not available[device.type]:
        raise UserError(f"--device {name}: not available on this machine; use --device cpu or auto")
    return device
