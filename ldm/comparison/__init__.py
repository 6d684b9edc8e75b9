"""Which guidance, at which scale, is best for a model: methods side by side on the same seeds, with their cost."""

from ldm.comparison.compare import compare
from ldm.comparison.config import ComparisonConfig
from ldm.comparison.ranking import pareto_front, rank_comparison, rank_runs
from ldm.comparison.records import Comparison, Run
from ldm.sampling.identity import model_identity

__all__ = [
    "Comparison", "ComparisonConfig", "Run",
    "compare", "model_identity", "pareto_front", "rank_comparison", "rank_runs",
]  # fmt: skip
