"""Latent diffusion with its guidances, measured: `from ldm import compare` is the shortest way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.comparison.api import compare_guidances as compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:
    if name != "compare":
        raise AttributeError(f"module 'ldm' has no attribute {name!r}")
    from ldm.comparison.api import compare_guidances

    return compare_guidances
