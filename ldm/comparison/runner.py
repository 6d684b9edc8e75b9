"""Runs are measured and stored one by one, so that a comparison continues where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.comparison.config import ComparisonConfig
from ldm.comparison.folder import load_record
from ldm.comparison.halving import survivors
from ldm.comparison.image_grid import save_sample_row
from ldm.comparison.methods import Variant
from ldm.comparison.records import Round, Run
from ldm.data.dataset import ImageData
from ldm.evaluation.baseline import RealBaseline, baseline_of_data
from ldm.evaluation.conditions import EvalCondition, uses_classifier
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import reference_features
from ldm.evaluation.evaluators import Evaluators
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.measure import Measurement, compute_metrics, sample_and_extract
from ldm.evaluation.sample_stats import SampleStats, StatsStore, load_stats, save_stats
from ldm.runtime.distributed import Processes
from ldm.runtime.files import atomic_write_json, read_json
from ldm.runtime.memory import PeakMemory
from ldm.runtime.progress import CostProgress
from ldm.sampling.config import ResolvedSampling
from ldm.sampling.finite import NonFiniteSamplesError
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.plan import SamplingPlan
from samplers import get_sampler, parse_sampler

NO_STATS: tuple[SampleStats, int | None] = SampleStats(), None


@dataclass(frozen=True)
class ComparisonContext:
    """What all runs of a comparison share, and the folder where they are stored.

    A run has a record `SLUG.json` (of a round before the last: `SLUG@N.json`, N samples), the image `SLUG.png` of its
    first `num_rows` samples, and until its last round `SLUG.safetensors`, the statistics of its samples so far.
    """

    pipeline: Pipeline
    plans: Mapping[str, SamplingPlan]  # by the slug of the variant
    data: ImageData
    conditions: Sequence[EvalCondition]
    evaluation: EvaluationConfig
    evaluators: Evaluators
    manifest: dict[str, Any]
    folder: Path
    num_rows: int
    processes: Processes

    @cached_property
    def reference(self) -> Tensor | Gaussian | None:
        """The reference, computed by all processes once a run is to be measured."""
        return reference_features(self.data, self.evaluators, self.evaluation, self.processes)

    def record_path(self, variant: Variant, num_images: int) -> Path:
        """The record of a run on `num_images` samples."""
        is_last = num_images == self.evaluation.num_images
        return self.folder / (f"{variant.slug}.json" if is_last else f"{variant.slug}@{num_images}.json")

    def stats_path(self, variant: Variant) -> Path:
        """The statistics of the samples so far."""
        return self.folder / f"{variant.slug}.safetensors"

    def store(self, variant: Variant, num_images: int) -> StatsStore:
        """The batches of a run that is not done, for it to go on from."""
        return StatsStore(self.folder / f"{variant.slug}@{num_images}-{self.evaluation.batch_size}.parts")

    def image_path(self, variant: Variant) -> Path:
        """The image of the first samples."""
        return self.folder / f"{variant.slug}.png"


def run_rounds(
    context: ComparisonContext, variants: Sequence[Variant], sizes: Sequence[int], config: ComparisonConfig
) -> tuple[tuple[Round, ...], tuple[Run, ...]]:
    """The rounds before the last one, and the runs of the last; `sizes` are the numbers of samples after each round."""
    rounds: list[Round] = []
    active = list(variants)
    with CostProgress(context.processes.is_main) as bar:
        for number, num_images in enumerate(sizes[:-1]):
            runs = _run_round(context, active, sizes, number, bar)
            remaining = survivors(runs, config)
            rounds.append(Round(num_images, runs, tuple(run.label for run in runs if run.label not in remaining)))
            active = [variant for variant in active if variant.label in remaining]
        return tuple(rounds), _run_round(context, active, sizes, len(sizes) - 1, bar)


def _run_round(
    context: ComparisonContext, variants: Sequence[Variant], sizes: Sequence[int], number: int, bar: CostProgress
) -> tuple[Run, ...]:
    """Round `number` from 0: runs that are stored are read, the others measured."""
    num_images, before = sizes[number], sizes[number - 1] if number else 0

    def load(variant: Variant) -> Run | None:
        path, on_cpu = context.record_path(variant, num_images), context.pipeline.device.type == "cpu"
        run = context.processes.run_on_main_and_broadcast(lambda: load_record(path, Run.from_json))
        # runs of before have one of a CPU, which says nothing
        return replace(run, peak_memory=None) if run is not None and on_cpu else run

    stored = [load(variant) for variant in variants]
    costs = [_cost(context.plans[variant.slug]) * (num_images - before) for variant in variants]
    bar.total = bar.done + sum(cost for cost, run in zip(costs, stored, strict=True) if run is None)
    bar.total += _later_cost(sum(costs), before, sizes[number:])
    runs = []
    for position, (variant, run) in enumerate(zip(variants, stored, strict=True), 1):
        bar.label = f"{variant.label} ({position} of {len(variants)})"
        bar.label += f", round {number + 1} of {len(sizes)}" if len(sizes) > 1 else ""
        runs.append(run or measure_run(context, variant, num_images, bar.update))
    return tuple(runs)


def measure_run(context: ComparisonContext, variant: Variant, num_images: int, on_cost: Callable[[float], None]) -> Run:
    """Draw the samples that are missing of `num_images`, compute the metrics of all and store the record.

    `on_cost` receives the cost of each batch.
    """
    plan, processes, reference = context.plans[variant.slug], context.processes, context.reference
    conditions = conditions_for(context.conditions[:num_images], context.pipeline, variant.sampling)
    stats, peak_before = load_stats(context.stats_path(variant), num_images) if processes.is_main else NO_STATS
    count = processes.run_on_main_and_broadcast(lambda: stats.count)
    parts = context.store(variant, num_images)
    with PeakMemory(context.pipeline.device) as peak:
        if count < num_images:
            try:
                new_stats = sample_and_extract(
                    context.pipeline,
                    conditions,
                    plan,
                    context.evaluation,
                    context.evaluators,
                    first=count,
                    keep=context.num_rows,
                    on_batch=lambda batch_size: on_cost(batch_size * _cost(plan)),
                    store=parts,
                    processes=processes,
                )
            except NonFiniteSamplesError as error:
                raise NonFiniteSamplesError(f"{variant.label}: {error}") from None
            stats = SampleStats.joined([stats, new_stats])
    peaks = [peak_bytes for peak_bytes in (*processes.gather(peak.bytes), peak_before) if peak_bytes is not None]
    peak_memory = max(peaks, default=None)

    def store() -> Run:
        if count == 0:
            save_sample_row(stats.images, context.image_path(variant))
        is_last = num_images == context.evaluation.num_images
        if not is_last and count < num_images:
            save_stats(context.stats_path(variant), stats, peak_memory)
        measurement = compute_metrics(stats, conditions, context.evaluation, context.evaluators, reference)
        run = _record(context, variant, num_images, measurement, peak_memory)
        path = context.record_path(variant, num_images)
        atomic_write_json(path, run.to_json())  # written last: the run is done
        parts.remove()
        if is_last:
            context.stats_path(variant).unlink(missing_ok=True)
        return Run.from_json(read_json(path))

    return processes.run_on_main_and_broadcast(store)


def _record(
    context: ComparisonContext, variant: Variant, num_images: int, measurement: Measurement, peak_memory: int | None
) -> Run:
    manifest = context.manifest | {"num_images": num_images, "sampling": asdict(variant.sampling)}
    scales = variant.guidance_scale, variant.classifier_scale
    solver = variant.sampling.sampler, variant.sampling.num_inference_steps
    return Run(variant.label, variant.method, *scales, *solver, peak_memory, measurement.result(manifest))


def measure_baseline(context: ComparisonContext, other: ImageData | None) -> RealBaseline:
    """The values of real images of the split `other`, on as many as samples."""
    path, run_on_main = context.folder / "floor.json", context.processes.run_on_main_and_broadcast
    stored = run_on_main(lambda: load_record(path, RealBaseline.from_json))
    if stored is not None:
        return stored
    reference, captions = context.reference, context.pipeline.has_text

    def store() -> RealBaseline:
        args = other, context.data, reference, context.evaluation, context.evaluators
        atomic_write_json(path, baseline_of_data(*args, captions=captions).to_json())
        return RealBaseline.from_json(read_json(path))

    return run_on_main(store)


def conditions_for(
    conditions: Sequence[EvalCondition], pipeline: Pipeline, sampling: ResolvedSampling
) -> list[EvalCondition]:
    """The conditions without class labels where neither the model nor its guidance takes one."""
    if pipeline.has_classes or uses_classifier(sampling):
        return list(conditions)
    return [replace(item, request=replace(item.request, class_label=None)) for item in conditions]


def _cost(plan: SamplingPlan) -> float:
    """Network evaluations a sample, roughly: intervals and the cost of gradients are left out."""
    name, _ = parse_sampler(plan.config.sampler)
    return plan.config.num_inference_steps * get_sampler(name).evaluations * (1 + len(plan.needed - {"cond"}))


def _later_cost(cost: float, before: int, sizes: Sequence[int]) -> float:
    """The cost of the rounds after this one, if half of the runs goes on each time."""
    now = sizes[0] - before
    return sum(cost * (b - a) / now / 2**k for k, (a, b) in enumerate(pairwise(sizes), 1))
