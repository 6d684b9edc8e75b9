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
        raise UserError("unknown", remedy="known: auto, cuda, mps, cpu", setting="device", value=name) from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device.type not in available:
        raise UserError("unknown", remedy="known: auto, cuda, mps, cpu", setting="device", value=name)
    if not available[device.type]:
        raise UserError(
            "not available on this machine", remedy="use `device` cpu or auto", setting="device", value=name
        )
    return device
