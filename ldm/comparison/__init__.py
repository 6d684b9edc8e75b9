"""Which guidance, at which scale, is best for a model: methods side by side on the same seeds, with their cost.

The comparison itself is `ldm.comparison.compare.compare`. What needs torch is imported at its first use, so that
settings are parsed and refused without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ldm.comparison.config import ComparisonConfig

if TYPE_CHECKING:
    from ldm.comparison.ranking import pareto_front, rank_comparison, rank_runs
    from ldm.comparison.records import Comparison, Run

__all__ = ["Comparison", "ComparisonConfig", "Run", "pareto_front", "rank_comparison", "rank_runs"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ldm.comparison' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ldm.comparison.{'records' if name[0].isupper() else 'ranking'}"), name)
