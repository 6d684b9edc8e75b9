"""From conditions to figures: samples are drawn, features extracted and the images dropped, on one process or more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm.evaluation.conditions import EvalCondition
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators
from ldm.evaluation.features.appearance import Appearance
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.metrics.base import Samples, measure_samples
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.evaluation.sample_stats import SampleStats, StatsStore
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.errors import StoppedByOtherProcess
from ldm.runtime.progress import progress
from ldm.sampling.config import SamplingConfig
from ldm.sampling.finite import NonFiniteSamplesError
from ldm.sampling.image_model import ImageModel, Plan
from samplers.level import short_repr


class EvaluationStopped(Exception):  # noqa: N818  (not an error)
    """The process stopped before all samples were drawn."""


@dataclass(frozen=True)
class Measurement:
    """Figures of one set of samples, and their cost."""

    figures: tuple[MetricValue, ...]
    evaluations_per_image: float
    seconds_per_image: float
    features: Tensor  # (N, D) of all samples

    __repr__ = short_repr

    def result(
        self, manifest: Mapping[str, Any], warnings: tuple[str, ...] = (), baseline: tuple[MetricValue, ...] = ()
    ) -> EvaluationResult:
        """With what the figures hold for."""
        cost = self.evaluations_per_image, self.seconds_per_image
        return EvaluationResult(self.figures, manifest, *cost, warnings, baseline)


def measure(
    model: ImageModel,
    conditions: Sequence[EvalCondition],
    sampling: SamplingConfig | Plan,
    config: EvaluationConfig,
    evaluators: Evaluators,
    reference: Tensor | Gaussian | None,
    *,
    label: str = "sampling",
    stop: Callable[[], object] = bool,
    store: StatsStore | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Measurement:
    """Sample under the conditions and measure; images stay on the device."""
    sample_stats = sample_and_extract(
        model, conditions, sampling, config, evaluators, label=label, stop=stop, store=store, processes=processes
    )
    return processes.run_on_main_and_broadcast(
        lambda: compute_metrics(sample_stats, conditions, config, evaluators, reference)
    )


def sample_and_extract(
    model: ImageModel,
    conditions: Sequence[EvalCondition],
    sampling: SamplingConfig | Plan,
    config: EvaluationConfig,
    evaluators: Evaluators,
    *,
    first: int = 0,
    keep: int = 0,
    label: str = "sampling",
    on_batch: Callable[[int], None] | None = None,
    stop: Callable[[], object] = bool,
    store: StatsStore | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> SampleStats:
    """Sample under the conditions but the `first`, and extract what the metrics need in the process of each batch.

    The main process gets the whole, in order; the others get nothing. `on_batch` gets the number of samples of each
    batch, and takes the place of the progress bar named `label`. `EvaluationStopped` as soon as `stop()` is true after
    a batch; `NonFiniteSamplesError` (in the other processes `StoppedByOtherProcess`) for samples that are not finite.
    Batches that are in the `store` are read, the others stored there.
    """
    remaining = list(conditions[first:])
    requests, size, shard = [condition.request for condition in remaining], config.batch_size, processes.shard
    starts = range(0, len(remaining), size)

    def stored() -> list[SampleStats | None]:
        counts = [min(size, len(remaining) - start) for start in starts]
        pairs = zip(starts, counts, strict=True)
        return [None if store is None else store.load(first + start, count) for start, count in pairs]

    known = stored() if processes.is_main else []
    numbers = processes.run_on_main_and_broadcast(lambda: [n for n, stats in enumerate(known) if stats is None])
    batches = model.generate(
        requests, sampling, seed=config.seed, first_index=first, batch_size=size, shard=shard, batches=numbers
    )
    own = [starts[number] for number in numbers[processes.rank :: processes.count]]
    parts = [(start, stats) for start, stats in zip(starts, known, strict=False) if stats is not None]
    total, before = len(starts), model.evaluations
    bar = (
        progress(own, label, total=total, initial=total - len(numbers))
        if processes.count == 1
        else progress(own, label)
    )
    failure: NonFiniteSamplesError | None = None
    for start in bar if processes.is_main and on_batch is None else own:
        started = time.perf_counter()
        try:
            images = next(batches)  # (b, 3, H, W)
        except NonFiniteSamplesError as error:
            failure = error
            break
        if stop():
            raise EvaluationStopped
        _wait(images.device)
        seconds, evaluations = time.perf_counter() - started, model.evaluations - before
        before = model.evaluations
        batch = remaining[start : start + len(images)]
        stats = replace(
            _extract(images, batch, config, evaluators),
            evaluations=evaluations,
            seconds=seconds,
            images=images[: max(0, keep - first - start)].cpu(),
        )
        if store is not None:
            store.save(first + start, stats)
        parts.append((start, stats))
        if on_batch is not None:
            on_batch(min(processes.count * size, len(remaining) - start))
    messages = [message for message in processes.all_gather(failure and str(failure)) if message]
    if messages:
        raise NonFiniteSamplesError(messages[0]) if processes.is_main else StoppedByOtherProcess(2)
    for _ in batches:
        raise RuntimeError("more batches than conditions")
    if processes.count > 1:
        parts = [(start, part.cpu()) for start, part in parts]
    gathered = processes.gather(parts)
    in_order = sorted((part for shard in gathered for part in shard), key=lambda part: part[0])
    return SampleStats.joined([part for _, part in in_order])


def compute_metrics(
    sample_stats: SampleStats,
    conditions: Sequence[EvalCondition],
    config: EvaluationConfig,
    evaluators: Evaluators,
    reference: Tensor | Gaussian | None,
) -> Measurement:
    """The figures of samples drawn under these conditions."""
    if sample_stats.count != len(conditions):
        raise ValueError(f"{sample_stats.count} samples were drawn under {len(conditions)} conditions")
    figures: tuple[MetricValue, ...] = ()
    judge = evaluators.judge
    if evaluators.extractor is not None and reference is not None:
        samples = Samples(
            reference,
            sample_stats.features.to(reference.device),
            evaluators.extractor,
            [(condition.request.prompt, condition.request.class_label) for condition in conditions],
            sample_stats.class_probs.to(reference.device) if len(sample_stats.class_probs) else None,
            judge.name if judge is not None else "",
            sample_stats.text_scores if len(sample_stats.text_scores) else None,
            evaluators.clip.name if evaluators.clip is not None else "",
            sample_stats.appearance if len(sample_stats.appearance) else None,
        )
        figures = measure_samples(samples, config)
    figures += tuple(
        MetricValue(f"accuracy/{name}", f"accuracy[{name}]", score.share, score.standard_error, higher_is_better=True)
        for name, score in sample_stats.scores.items()
    )
    cost = sample_stats.evaluations / sample_stats.count, sample_stats.seconds / sample_stats.count
    return Measurement(figures, *cost, sample_stats.features)


def _extract(
    images: Tensor, conditions: Sequence[EvalCondition], config: EvaluationConfig, evaluators: Evaluators
) -> SampleStats:
    judge, nothing = evaluators.judge, torch.empty(0)
    features = nothing if evaluators.extractor is None else evaluators.extractor(images)
    class_probs, scores = nothing, {}
    if judge is not None:
        scores = judge.score(images, [condition.expected_attributes for condition in conditions])
        if judge.class_head and "class_probs" in config.needs:
            class_probs = judge.probabilities(images)[judge.class_head]
    texts = nothing
    if evaluators.clip is not None:
        texts = evaluators.clip(images, [condition.request.prompt for condition in conditions])
    appearance = Appearance(images.device)(images) if "pixels" in config.needs else nothing
    return SampleStats(len(images), features, class_probs, texts, scores, appearance=appearance)


def _wait(device: torch.device) -> None:
    """Let the device finish, so that its time is counted where it is spent."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
