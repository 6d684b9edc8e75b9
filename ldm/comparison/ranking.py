"""The answer of a comparison: the best run, those that are not distinguished from it, and the ones worth their cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ldm.comparison.config import ComparisonConfig
from ldm.comparison.records import Comparison, Run
from ldm.comparison.tables import format_value
from ldm.evaluation.intervals import interval
from ldm.runtime.text import counted


@dataclass(frozen=True, slots=True)
class Difference:
    """A run against the best one: how much worse its value is, and the 95 % interval of that difference."""

    run: Run
    worse: float
    interval: tuple[float, float] | None

    @property
    def undecided(self) -> bool:
        """Whether the values leave open which of the two is better."""
        return self.interval is None or self.interval[0] <= 0


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best run within the budget by `metric`, all others within it from better to worse, and a sentence."""

    metric: str
    best: Run | None
    others: tuple[Difference, ...]
    sentence: str


def rank_runs(
    runs: Sequence[Run],
    *,
    budget_evaluations: float | None = None,
    budget_seconds: float | None = None,
    initial_count: int = 0,
    decide_by: str = "",
) -> Ranking:
    """Rank runs of one comparison, or those left of `initial_count`, by the metric `decide_by`, else by their first.

    Differences are paired: all runs draw the same seeds under the same conditions, and their half-samples are halves
    of the same numbers, so what the samples have in common cancels. Intervals are of one difference each, not of all.
    """
    if not runs[0].result.figures:
        return Ranking("", None, (), "No metric was measured that could rank the runs.")
    metric = decide_by or runs[0].result.figures[0].metric
    budget = _budget_text(budget_evaluations, budget_seconds)
    affordable = [
        run
        for run in runs
        if (budget_evaluations is None or run.result.evaluations_per_image <= budget_evaluations)
        and (budget_seconds is None or run.result.seconds_per_image <= budget_seconds)
    ]
    if not affordable:
        return Ranking(metric, None, (), f"None of the {counted(len(runs), 'run')} stays within {budget}.")
    affordable = [run for run in affordable if not run.as_none] or affordable
    best = min(affordable, key=lambda run: run.result[metric].loss())
    others = sorted((_difference(best, run, metric) for run in affordable if run is not best), key=lambda d: d.worse)
    count = len(affordable)
    among = f" of the {count} within {budget}" if budget else f" of {'the ' if initial_count else ''}{count}"
    among += f" left of {initial_count}" if initial_count else ""
    sentence = f"{_sentence(best, others, metric, among)} {_other_objectives(affordable, best, metric)}"
    return Ranking(metric, best, tuple(others), sentence)


def rank_comparison(comparison: Comparison, config: ComparisonConfig) -> Ranking:
    """The ranking of a comparison under the budgets of its settings."""
    return rank_runs(
        comparison.runs,
        budget_evaluations=config.budget_evaluations,
        budget_seconds=config.budget_seconds,
        initial_count=len(comparison.initial_runs) if comparison.rounds else 0,
        decide_by=config.decide_by,
    )


def pareto_front(runs: Sequence[Run], metric: str, other: str = "") -> tuple[Run, ...]:
    """The runs that no other one beats in `metric` and in the metric `other` at once; "" is network evaluations."""

    def losses(run: Run) -> tuple[float, float]:
        return run.result[metric].loss(), run.result[other].loss() if other else run.result.evaluations_per_image

    points = [losses(run) for run in runs]
    return tuple(
        run
        for run, (a, b) in zip(runs, points, strict=True)
        if not any(x <= a and y <= b and (x, y) != (a, b) for x, y in points)
    )


def _difference(best: Run, run: Run, metric: str) -> Difference:
    a, b = best.result[metric], run.result[metric]
    worse = b.loss() - a.loss()
    if len(a.halves) != len(b.halves):
        return Difference(run, worse, None)
    differences = [b.loss(y) - a.loss(x) for x, y in zip(a.halves, b.halves, strict=True)]
    return Difference(run, worse, interval(worse, differences))


def _other_objectives(runs: Sequence[Run], best: Run, metric: str) -> str:
    """What decided, and which run is the best by each of the other metrics."""
    winners = {}
    for value in best.result.figures:
        if value.metric != metric and len(runs) > 1 and math.isfinite(value.loss()):
            other = min(runs, key=lambda run: run.result[value.metric].loss())
            tied = other.result[value.metric].loss() == value.loss()
            winners[value.metric] = best if tied else other
    others = [f"{name} {run.label} ({format_value(run.result[name])})" for name, run in winners.items() if run != best]
    also = [name for name, run in winners.items() if run == best]
    text = f"Decided by {metric}"
    text += f"; the best by {', by '.join(others)}" if others else ""
    text += f"; it is also the best by {', '.join(also)}" if also else ""
    return text + "."


def _budget_text(evaluations: float | None, seconds: float | None) -> str:
    parts = [] if evaluations is None else [f"{evaluations:g} network evaluations an image"]
    parts += [] if seconds is None else [f"{seconds:g} seconds an image"]
    return " and ".join(parts)


def _sentence(best: Run, others: Sequence[Difference], metric: str, among: str) -> str:
    value = best.result[metric]
    ends = "" if value.interval is None else " (95 %: {:.4g} to {:.4g})".format(*value.interval)
    kind = "highest" if value.higher_is_better else "lowest" if value.directed else "most realistic"
    text = f"{best.label} has the {kind} {value.name}{among}: {value.value:.4g}{ends}"
    undecided = [other for other in others if other.undecided]
    if not others:
        return text + "."
    if not undecided:
        second = others[0]
        ends = "" if second.interval is None else " (95 %: {:.3g} to {:.3g})".format(*second.interval)
        return f"{text}; the next, {second.run.label}, is worse by {second.worse:.3g}{ends}."
    names = ", ".join(other.run.label for other in undecided[:4])
    names += f" and {len(undecided) - 4} more" if len(undecided) > 4 else ""
    return f"{text}, but these samples do not tell it from {names}."
