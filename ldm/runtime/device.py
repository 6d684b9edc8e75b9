"""Which device to compute on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ldm.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

_NAMES = re.compile(r"auto|cpu|mps(:\d+)?|cuda(:\d+)?")


def check_device(name: str) -> None:
    """`UserError` for a name that no device has, without a look at this machine."""
    if not _NAMES.fullmatch(name):
        raise UserError("unknown", remedy="known: auto, cuda, mps, cpu", setting="device", value=name)


def resolve_device(name: str | torch.device) -> torch.device:
    """The device of a name: cpu, mps, cuda or cuda:N; `auto` is the GPU where there is one, else Apple's, else the CPU.

    `UserError` for an unknown name and for a device that is not available.
    """
    check_device(str(name))
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = torch.device(name)
    if not available[device.type]:
        remedy = "use `device` cpu or auto"
        raise UserError("not available on this machine", remedy=remedy, setting="device", value=name)
    return device
