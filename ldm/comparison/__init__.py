"""Which guidance, at which scale, is best for a model: methods side by side on the same seeds, with their cost."""

from ldm.comparison.compare import compare, model_identity
from ldm.comparison.config import ComparisonConfig
from ldm.comparison.methods import METHODS
from ldm.comparison.records import Cell, Comparison
from ldm.comparison.verdict import Verdict, judge_cells, pareto_front, verdict_of

__all__ = [
    "METHODS",
    "Cell",
    "Comparison",
    "ComparisonConfig",
    "Verdict",
    "compare",
    "judge_cells",
    "model_identity",
    "pareto_front",
    "verdict_of",
]
