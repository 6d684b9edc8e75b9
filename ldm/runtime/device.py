"""Which device to compute on."""

from __future__ import annotations

import torch

from ldm.runtime.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device of a name: cpu, mps, cuda or cuda:N; `auto` is the GPU where there is one, else Apple's, else the CPU.

    `UserError` for an unknown name and for a device that is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    try:
        device = torch.device(name)
        is_available = available[device.type]
    except (RuntimeError, KeyError):
        raise UserError("unknown", remedy="known: auto, cuda, mps, cpu", setting="device", value=name) from None
    if not is_available:
        remedy = "use `device` cpu or auto"
        raise UserError("not available on this machine", remedy=remedy, setting="device", value=name)
    return device
