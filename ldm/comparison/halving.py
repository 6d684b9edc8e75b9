"""Successive halving: samples are spent where they decide (Jamieson and Talwalkar 2016, arXiv:1502.07943).

Each round draws twice as many samples of the remaining runs, those of the round before among them, and compares values
of equal numbers of samples only. As in Algorithm 1 the better half goes on; unlike there, so does every run whose
paired 95 % interval does not distinguish it from the best, for more samples decide between those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm.comparison.config import ComparisonConfig
from ldm.comparison.ranking import rank_runs
from ldm.comparison.records import Run
from ldm.runtime.errors import UserError
from ldm.runtime.text import counted


def round_sizes(num_images: int, rounds: int, batch_size: int) -> tuple[int, ...]:
    """How many samples a run has after each round: the last `num_images`, each before about half of the next.

    They are whole batches, so that the samples are those of a comparison without rounds, bit for bit. `UserError` where
    two rounds would be the same.
    """
    sizes = [num_images]
    while len(sizes) < rounds:
        batches = -(-sizes[-1] // batch_size)
        sizes.append(-(-batches // 2) * batch_size)
    if len(set(sizes)) < rounds:
        problem = f"{counted(num_images, 'sample')} in batches of {batch_size} cannot be halved so often"
        raise UserError(problem, remedy="give a smaller `batch_size` or fewer rounds", setting="rounds", value=rounds)
    return tuple(sizes[::-1])


def survivors(runs: Sequence[Run], config: ComparisonConfig) -> tuple[str, ...]:
    """The labels of the runs that go on, in their order: the better half, and those not distinguished from the best.

    Only runs within the budgets of `config` can be the best, so the others leave; if none is within them, all compete.
    """
    budgets: dict[str, Any] = {"budget_evaluations": config.budget_evaluations, "budget_seconds": config.budget_seconds}
    ranking = rank_runs(runs, **budgets, decide_by=config.decide_by)
    if ranking.best is None:
        ranking = rank_runs(runs, decide_by=config.decide_by)
    if ranking.best is None:
        return tuple(run.label for run in runs)
    ranked = [ranking.best.label, *(other.run.label for other in ranking.others)]
    undecided = {other.run.label for other in ranking.others if other.interval is not None and other.undecided}
    remaining = undecided | set(ranked[: -(-len(ranked) // 2)])
    return tuple(run.label for run in runs if run.label in remaining)
