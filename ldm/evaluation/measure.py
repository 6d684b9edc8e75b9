"""From conditions to figures: samples are drawn, features extracted and the images dropped, on one process or more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ldm.evaluation.conditions import EvalCondition
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.features.judge import Score
from ldm.evaluation.metrics.base import Samples, measure_samples
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.progress import progress
from ldm.sampling.config import SamplingConfig
from ldm.sampling.image_model import ImageModel, Plan


class EvaluationStopped(Exception):  # noqa: N818  (not an error)
    """The process stopped before all samples were drawn."""


@dataclass(frozen=True)
class SampleStats:
    """What was extracted of `count` samples, what these cost, and the first of them; parts can be joined.

    `features` (count, D), the judge's `class_probs` (count, K) and CLIP's `text_scores` (count,) are empty where no
    metric needs them; `images` (keep, 3, H, W) in [-1, 1] are on the CPU.
    """

    count: int = 0
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    class_probs: Tensor = field(default_factory=lambda: torch.empty(0))
    text_scores: Tensor = field(default_factory=lambda: torch.empty(0))
    scores: Mapping[str, Score] = field(default_factory=dict)
    evaluations: int = 0
    seconds: float = 0.0
    images: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def joined(cls, parts: Sequence[SampleStats]) -> SampleStats:
        """All parts in their order."""
        scores: dict[str, Score] = {}
        for part in parts:
            for name, score in part.scores.items():
                scores[name] = scores.get(name, Score()) + score
        return cls(
            sum(part.count for part in parts),
            _cat([part.features for part in parts]),
            _cat([part.class_probs for part in parts]),
            _cat([part.text_scores for part in parts]),
            scores,
            sum(part.evaluations for part in parts),
            sum(part.seconds for part in parts),
            _cat([part.images for part in parts]),
        )

    def cpu(self) -> SampleStats:
        """The same with all tensors on the CPU."""
        tensors = {name: getattr(self, name).cpu() for name in ("features", "class_probs", "text_scores")}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Measurement:
    """Figures of one set of samples, and their cost."""

    figures: tuple[MetricValue, ...]
    evaluations_per_image: float
    seconds_per_image: float
    features: Tensor  # (N, D) of all samples

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
    processes: Processes = SINGLE_PROCESS,
) -> Measurement:
    """Sample under the conditions and measure; images stay on the device."""
    sample_stats = sample_and_extract(
        model, conditions, sampling, config, evaluators, label=label, stop=stop, processes=processes
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
    processes: Processes = SINGLE_PROCESS,
) -> SampleStats:
    """Sample under the conditions but the `first`, and extract what the metrics need in the process of each batch.

    The main process gets the whole, in order; the others get nothing. `on_batch` gets the number of samples of each
    batch, and takes the place of the progress bar named `label`. `EvaluationStopped` as soon as `stop()` is true after
    a batch.
    """
    remaining = list(conditions[first:])
    requests, size, shard = [condition.request for condition in remaining], config.batch_size, processes.shard
    batches = model.generate(requests, sampling, seed=config.seed, first_index=first, batch_size=size, shard=shard)
    starts = processes.batch_starts(len(remaining), size)
    parts: list[tuple[int, SampleStats]] = []
    for start in progress(starts, label) if processes.is_main and on_batch is None else starts:
        started = time.perf_counter()
        images = next(batches)  # (b, 3, H, W)
        if stop():
            raise EvaluationStopped
        _wait(images.device)
        seconds = time.perf_counter() - started
        batch = remaining[start : start + len(images)]
        first_images = images[: max(0, keep - first - start)].cpu()
        parts.append(
            (start, replace(_extract(images, batch, config, evaluators), seconds=seconds, images=first_images))
        )
        if on_batch is not None:
            on_batch(min(processes.count * size, len(remaining) - start))
    for _ in batches:
        raise RuntimeError("more batches than conditions")
    cost = SampleStats(evaluations=model.evaluations)
    if processes.count > 1:
        parts = [(start, part.cpu()) for start, part in parts]
    gathered = processes.gather((parts, cost))
    in_order = sorted((part for shard, _ in gathered for part in shard), key=lambda part: part[0])
    return SampleStats.joined([*(part for _, part in in_order), *(cost for _, cost in gathered)])


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
    return SampleStats(len(images), features, class_probs, texts, scores)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    filled = [part for part in parts if len(part)]
    return torch.cat([part.to(filled[-1].device) for part in filled]) if filled else torch.empty(0)


def _wait(device: torch.device) -> None:
    """Let the device finish, so that its time is counted where it is spent."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
