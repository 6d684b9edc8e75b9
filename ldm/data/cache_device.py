"""Where cached latents stay during training: on the device, in memory, or in their files."""

from __future__ import annotations

import os
from typing import Literal

import torch

from ldm.runtime.errors import UserError

CacheDevice = Literal["auto", "cuda", "cpu", "disk"]
_FRACTION = 0.25  # of the free GPU memory that `auto` may use; the training needs the rest


def choose_cache_device(cache_device: CacheDevice, device: torch.device, size: int, limit: int) -> torch.device | None:
    """The device for a cache of `size` bytes; None if it stays in its files.

    auto: the GPU of the training if that leaves three quarters of its free memory, else the memory of the machine up to
    `limit` bytes, else the files. `UserError` for a device that is absent or has too little memory.
    """
    if cache_device == "disk":
        return None
    if cache_device == "cuda":
        if device.type != "cuda":
            problem = f"this training is on {device.type}"
            raise UserError(problem, remedy="take auto, cpu or disk", setting="cache_device", value="cuda")
        _check(size, _free(device), "the GPU", "cpu or disk")
        return device
    if cache_device == "cpu":
        _check(size, _available(), "memory", "disk")
        return torch.device("cpu")
    if device.type == "cuda" and size <= _FRACTION * _free(device):
        return device
    if size > limit:
        return None
    return torch.device("cpu") if device.type == "cuda" else device


def _check(size: int, free: int, where: str, remedy: str) -> None:
    if size > free:
        problem = f"the latents take {size} bytes, {where} has {free} free"
        raise UserError(problem, remedy=f"take {remedy}", setting="cache_device")


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def _available() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
