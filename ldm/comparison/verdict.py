"""What a comparison answers: the best cell, those that cannot be told from it, and the ones worth their cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ldm.comparison.config import ComparisonConfig
from ldm.comparison.records import Cell, Comparison
from ldm.evaluation.metrics.intervals import interval
from ldm.evaluation.records import MetricValue


@dataclass(frozen=True, slots=True)
class Rival:
    """A cell against the best one: how much worse its figure is, and the 95 % interval of that difference."""

    cell: Cell
    worse: float
    interval: tuple[float, float] | None

    @property
    def undecided(self) -> bool:
        """Whether the figures leave open which of the two is better."""
        return self.interval is None or self.interval[0] <= 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The best cell within the budget by `metric`, all others of the budget in their order, and the sentence."""

    metric: str
    best: Cell | None
    rivals: tuple[Rival, ...]
    sentence: str


def judge_cells(
    cells: Sequence[Cell],
    *,
    budget_evaluations: float | None = None,
    budget_seconds: float | None = None,
    started: int = 0,
) -> Verdict:
    """The verdict by the first figure of the cells, which are those of one comparison, or are left of `started`.

    Differences are paired: all cells drew the same seeds under the same conditions, and their half-samples are halves
    of the same numbers, so what the samples have in common cancels. Intervals are of one difference each, not of all.
    """
    if not cells[0].result.figures:
        return Verdict("", None, (), "Nothing was measured that could tell the cells apart.")
    metric = cells[0].result.figures[0].metric
    budget = _budget(budget_evaluations, budget_seconds)
    inside = [
        cell
        for cell in cells
        if (budget_evaluations is None or cell.result.evaluations_per_image <= budget_evaluations)
        and (budget_seconds is None or cell.result.seconds_per_image <= budget_seconds)
    ]
    if not inside:
        return Verdict(metric, None, (), f"None of the {len(cells)} cells stays within {budget}.")
    best = min(inside, key=lambda cell: _cost(cell.result[metric]))
    rivals = sorted((_rival(best, cell, metric) for cell in inside if cell is not best), key=lambda rival: rival.worse)
    among = f" of the {len(inside)} within {budget}" if budget else f" of {'the ' if started else ''}{len(inside)}"
    among += f" left of {started}" if started else ""
    return Verdict(metric, best, tuple(rivals), _sentence(best, rivals, metric, among))


def verdict_of(comparison: Comparison, config: ComparisonConfig) -> Verdict:
    """The verdict on a comparison under the budgets of its settings."""
    return judge_cells(
        comparison.cells,
        budget_evaluations=config.budget_evaluations,
        budget_seconds=config.budget_seconds,
        started=len(comparison.everyone) if comparison.rounds else 0,
    )


def pareto_front(cells: Sequence[Cell], metric: str, other: str = "") -> tuple[Cell, ...]:
    """The cells that no other one beats in `metric` and in the figure `other` at once; "" is network evaluations."""

    def place(cell: Cell) -> tuple[float, float]:
        return _cost(cell.result[metric]), _cost(cell.result[other]) if other else cell.result.evaluations_per_image

    places = [place(cell) for cell in cells]
    return tuple(
        cell
        for cell, (a, b) in zip(cells, places, strict=True)
        if not any(x <= a and y <= b and (x, y) != (a, b) for x, y in places)
    )


def _rival(best: Cell, cell: Cell, metric: str) -> Rival:
    a, b = best.result[metric], cell.result[metric]
    worse = _cost(b) - _cost(a)
    if len(a.halves) != len(b.halves):
        return Rival(cell, worse, None)
    sign = -1 if a.higher_is_better else 1
    return Rival(cell, worse, interval(worse, [sign * (y - x) for x, y in zip(a.halves, b.halves, strict=True)]))


def _cost(figure: MetricValue) -> float:
    if math.isnan(figure.value):
        return math.inf  # no figure is no merit
    return -figure.value if figure.higher_is_better else figure.value


def _budget(evaluations: float | None, seconds: float | None) -> str:
    parts = [] if evaluations is None else [f"{evaluations:g} network evaluations an image"]
    parts += [] if seconds is None else [f"{seconds:g} seconds an image"]
    return " and ".join(parts)


def _sentence(best: Cell, rivals: Sequence[Rival], metric: str, among: str) -> str:
    figure = best.result[metric]
    ends = "" if figure.interval is None else " (95 %: {:.4g} to {:.4g})".format(*figure.interval)
    kind = "highest" if figure.higher_is_better else "lowest"
    text = f"{best.label} has the {kind} {figure.name}{among}: {figure.value:.4g}{ends}"
    open_ = [rival for rival in rivals if rival.undecided]
    if not rivals:
        return text + "."
    if not open_:
        nearest = rivals[0]
        gap = "" if nearest.interval is None else " (95 %: {:.3g} to {:.3g})".format(*nearest.interval)
        return f"{text}; the next, {nearest.cell.label}, is worse by {nearest.worse:.3g}{gap}."
    names = ", ".join(rival.cell.label for rival in open_[:4]) + (
        f" and {len(open_) - 4} more" if len(open_) > 4 else ""
    )
    return f"{text}, but these samples do not tell it from {names}."
