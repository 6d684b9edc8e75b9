"""Successive halving: samples are spent where they decide (Jamieson and Talwalkar 2016, arXiv:1502.07943).

Each round draws twice as many samples of the cells that are left, those of the round before among them, and compares
figures of equal numbers only. As in Algorithm 1 the better half goes on; unlike there, so does every cell whose paired
95 % interval does not tell it from the best one, for those are the cells where more samples decide.
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.comparison.config import ComparisonConfig
from ldm.comparison.records import Cell
from ldm.comparison.verdict import judge_cells
from ldm.runtime.errors import UserError


def round_sizes(num_images: int, rounds: int, batch_size: int) -> tuple[int, ...]:
    """How many samples a cell has after each round: the last `num_images`, each before about half of the next.

    They are whole batches, so that the samples are those of a comparison without rounds, bit for bit. `UserError` where
    two rounds would be the same.
    """
    sizes = [num_images]
    while len(sizes) < rounds:
        batches = -(-sizes[-1] // batch_size)
        sizes.append(-(-batches // 2) * batch_size)
    if len(set(sizes)) < rounds:
        raise UserError(
            f"{num_images} samples in batches of {batch_size} cannot be halved so often",
            remedy="give a smaller `batch_size` or fewer rounds",
            setting="rounds",
            value=rounds,
        )
    return tuple(sizes[::-1])


def staying(cells: Sequence[Cell], config: ComparisonConfig) -> tuple[str, ...]:
    """The labels of the cells that go on, in their order: the better half, and those that are not told from the best.

    Only cells within the budgets of `config` can win, so the others leave; where none is within them, all may stay.
    """
    verdict = judge_cells(cells, budget_evaluations=config.budget_evaluations, budget_seconds=config.budget_seconds)
    if verdict.best is None:
        verdict = judge_cells(cells)
    if verdict.best is None:
        return tuple(cell.label for cell in cells)
    ranked = [verdict.best.label, *(rival.cell.label for rival in verdict.rivals)]
    open_ = {rival.cell.label for rival in verdict.rivals if rival.interval is not None and rival.undecided}
    kept = open_ | set(ranked[: -(-len(ranked) // 2)])
    return tuple(cell.label for cell in cells if cell.label in kept)
