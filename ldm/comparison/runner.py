"""Cells are measured here and stored when they are done, so that a comparison goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.comparison.config import ComparisonConfig
from ldm.comparison.halving import staying
from ldm.comparison.methods import Variant
from ldm.comparison.picture import save_strip
from ldm.comparison.records import Cell, Round
from ldm.data.dataset import ImageData
from ldm.evaluation.baseline import RealBaseline, baseline_of_data
from ldm.evaluation.conditions import EvalCondition, uses_classifier
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import reference_features
from ldm.evaluation.evaluators import Evaluators
from ldm.evaluation.features.judge import Score
from ldm.evaluation.measure import SampleStats, compute_metrics, sample_and_extract
from ldm.evaluation.metrics.frechet import Gaussian
from ldm.evaluation.records import EvaluationResult
from ldm.runtime.distributed import Processes
from ldm.runtime.files import atomic_write_json, read_json
from ldm.runtime.memory import PeakMemory
from ldm.runtime.progress import CostProgress
from ldm.runtime.tensors import open_tensors, save_tensors
from ldm.sampling.config import SamplingConfig
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.plan import needed_branches, parse_guidances
from samplers import get_sampler, parse_sampler

_SEEN = {"features": "features", "class_probs": "opinions", "text_scores": "text_scores"}  # attribute: key in the file


@dataclass
class ComparisonRunner:
    """Measures cells under the same conditions; `shared` is the manifest of all, `folder` is where they are stored.

    A cell has a record `SLUG.json` (of a round before the last: `SLUG@N.json`, N samples), the picture `SLUG.png` of
    its first `rows` samples, and until its last round `SLUG.safetensors`, what was seen of its samples so far.
    """

    pipeline: Pipeline
    data: ImageData
    drawn: Sequence[EvalCondition]
    evaluation: EvaluationConfig
    evaluators: Evaluators
    shared: dict[str, Any]
    folder: Path
    rows: int
    processes: Processes
    _reference: Tensor | Gaussian | None = None
    _has_reference: bool = False

    def run(
        self, cells: Sequence[Variant], sizes: Sequence[int], config: ComparisonConfig
    ) -> tuple[tuple[Round, ...], tuple[Cell, ...]]:
        """The rounds before the last one, and the cells of that; `sizes` are their numbers of samples."""
        rounds: list[Round] = []
        going, before = list(cells), 0
        with CostProgress(self.processes.is_main) as whole:
            for place, size in enumerate(sizes):
                known = [self.processes.run_on_main_and_broadcast(partial(self._known, cell, size)) for cell in going]
                costs = [_cost(cell.sampling) * (size - before) for cell in going]
                whole.total = whole.done + sum(cost for cost, cell in zip(costs, known, strict=True) if cell is None)
                whole.total += _later(sum(costs), before, sizes[place:])
                found = []
                for number, (cell, record) in enumerate(zip(going, known, strict=True), 1):
                    whole.label = f"{cell.label} ({number} of {len(going)})" + (
                        f", round {place + 1} of {len(sizes)}" if len(sizes) > 1 else ""
                    )
                    found.append(record or self._cell(cell, size, whole, last=size == sizes[-1]))
                if size == sizes[-1]:
                    return tuple(rounds), tuple(found)
                kept = staying(found, config)
                rounds.append(Round(size, tuple(found), tuple(cell.label for cell in found if cell.label not in kept)))
                going, before = [cell for cell in going if cell.label in kept], size
        raise ValueError("a comparison has one round or more")

    def strip(self, cell: Variant) -> Path:
        """The picture of a cell's first samples."""
        return self.folder / f"{cell.slug}.png"

    def floor(self, other: ImageData | None) -> RealBaseline:
        """The figures of real images of the other split, on as many as samples; of the first process alone."""
        place = self.folder / "floor.json"
        if not place.is_file():
            real = self._reference
            if not self._has_reference:
                real = reference_features(self.data, self.evaluators, self.evaluation)
            captions = self.pipeline.has_text
            found = baseline_of_data(other, self.data, real, self.evaluation, self.evaluators, captions=captions)
            atomic_write_json(place, found.to_json())
        return RealBaseline.from_json(read_json(place))

    def _place(self, cell: Variant, size: int) -> Path:
        last = size == self.evaluation.num_images
        return self.folder / (f"{cell.slug}.json" if last else f"{cell.slug}@{size}.json")

    def _known(self, cell: Variant, size: int) -> Cell | None:
        place = self._place(cell, size)
        return Cell.from_json(read_json(place)) if place.is_file() else None

    def _cell(self, cell: Variant, size: int, whole: CostProgress, *, last: bool) -> Cell:
        if not self._has_reference:
            self._reference = reference_features(self.data, self.evaluators, self.evaluation, self.processes)
            self._has_reference = True
        drawn = told(self.drawn[:size], self.pipeline, cell.sampling)
        kept = self.folder / f"{cell.slug}.safetensors"
        before, peak_before = read_seen(kept) if self.processes.is_main else (SampleStats(), None)
        count = self.processes.run_on_main_and_broadcast(lambda: before.count)
        if count > size:
            before, count = SampleStats(), 0
        seen, weight = before, _cost(cell.sampling)
        with PeakMemory(self.pipeline.device) as peak:
            if count < size:
                new = sample_and_extract(
                    self.pipeline,
                    drawn,
                    cell.sampling,
                    self.evaluation,
                    self.evaluators,
                    first=count,
                    keep=self.rows,
                    on_batch=lambda number: whole.update(number * weight),
                    processes=self.processes,
                )
                seen = SampleStats.joined([before, new])
        peaks = [bytes_ for bytes_ in (*self.processes.gather(peak.bytes), peak_before) if bytes_ is not None]

        def store() -> Cell:
            if count == 0:
                save_strip(seen.images, self.strip(cell))
            most = max(peaks, default=None)
            if not last and count < size:
                write_seen(kept, seen, most)
            found = compute_metrics(seen, drawn, self.evaluation, self.evaluators, self._reference)
            result = EvaluationResult(
                found.figures,
                self.shared | {"num_images": size, "sampling": asdict(cell.sampling)},
                found.evaluations_per_image,
                found.seconds_per_image,
            )
            way = cell.sampling.sampler, cell.sampling.num_inference_steps, most
            record = Cell(cell.label, cell.method, cell.guidance_scale, cell.classifier_scale, *way, result)
            atomic_write_json(self._place(cell, size), record.to_json())  # last: with it the cell is done
            if last:
                kept.unlink(missing_ok=True)
            return Cell.from_json(read_json(self._place(cell, size)))

        return self.processes.run_on_main_and_broadcast(store)


def told(drawn: Sequence[EvalCondition], pipeline: Pipeline, sampling: SamplingConfig) -> list[EvalCondition]:
    """The conditions as a cell may be told them: a label only to what takes one."""
    if pipeline.has_classes or uses_classifier(sampling):
        return list(drawn)
    return [replace(each, request=replace(each.request, class_label=None)) for each in drawn]


def write_seen(path: Path, seen: SampleStats, peak: int | None) -> None:
    """What was seen of a cell so far, without its pictures."""
    scores = {name: [score.right, score.total] for name, score in seen.scores.items()}
    cost = {"evaluations": seen.evaluations, "seconds": seen.seconds, "peak": peak}
    facts = {"count": seen.count, "scores": scores, **cost}
    save_tensors(path, {key: getattr(seen, name) for name, key in _SEEN.items()}, {"seen": json.dumps(facts)})


def read_seen(path: Path) -> tuple[SampleStats, int | None]:
    """What `write_seen` wrote, with the peak of memory; nothing where there is no such file, or none that is whole."""
    try:
        with open_tensors(path) as file:
            facts = json.loads(file.metadata()["seen"])
            features, class_probs, texts = (file.get_tensor(key) for key in _SEEN.values())
        scores = {name: Score(right, asked) for name, (right, asked) in facts["scores"].items()}
        cost = facts["evaluations"], facts["seconds"]
        return SampleStats(facts["count"], features, class_probs, texts, scores, *cost), facts["peak"]
    except (KeyError, TypeError, ValueError):
        return SampleStats(), None


def _cost(sampling: SamplingConfig) -> float:
    """Network evaluations a sample, roughly: intervals and the price of gradients are left out."""
    name, _ = parse_sampler(sampling.sampler)
    branches = 1 + len(needed_branches(parse_guidances(sampling)) - {"cond"})
    return sampling.num_inference_steps * get_sampler(name).evaluations * branches


def _later(cost: float, before: int, sizes: Sequence[int]) -> float:
    """What the rounds after this one may cost, if half of the cells goes on each time."""
    now = sizes[0] - before
    return sum(cost * (b - a) / now / 2**k for k, (a, b) in enumerate(pairwise(sizes), 1))
