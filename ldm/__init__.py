"""Latent diffusion with its guidances, measured: `from ldm import Pipeline, compare` is the shortest way in."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.comparison.api import compare_guidances as compare
    from ldm.sampling.config import Request, SamplingConfig
    from ldm.sampling.pipeline import Pipeline

__all__ = ["Pipeline", "Request", "SamplingConfig", "compare"]
_SOURCES = {
    "Pipeline": ("ldm.sampling.pipeline", "Pipeline"),
    "Request": ("ldm.sampling.config", "Request"),
    "SamplingConfig": ("ldm.sampling.config", "SamplingConfig"),
    "compare": ("ldm.comparison.api", "compare_guidances"),
}


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module 'ldm' has no attribute {name!r}")
    module, attribute = _SOURCES[name]
    return getattr(importlib.import_module(module), attribute)
