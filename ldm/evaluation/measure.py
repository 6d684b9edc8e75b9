"""From conditions to figures: samples are drawn, seen by the instruments and forgotten, on one process or several."""

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
from ldm.evaluation.features.judge import Score
from ldm.evaluation.metrics.figures import Samples, figures_of
from ldm.evaluation.metrics.frechet import Gaussian
from ldm.evaluation.records import MetricValue
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.progress import progress
from ldm.sampling.config import SamplingConfig
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.plan import SamplingPlan


@dataclass(frozen=True)
class SampleStats:
    """What the instruments saw of `count` samples, what these cost, and the first of them; what follows may be added.

    `features` (count, D) and the judge's `class_probs` on the class (count, K) are empty where they were not asked for,
    so are `text_scores` (count,);
    `images` (kept, 3, H, W) in [-1, 1] are on the CPU.
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


@dataclass(frozen=True)
class Measurement:
    """Figures of one set of samples, their cost, and the first few of them."""

    figures: tuple[MetricValue, ...]
    evaluations_per_image: float
    seconds_per_image: float
    images: Tensor  # (kept, 3, H, W) in [-1, 1], on the CPU
    features: Tensor = field(default_factory=lambda: torch.empty(0))  # (N, D) of all samples


def measure(
    pipeline: Pipeline,
    conditions: Sequence[EvalCondition],
    sampling: SamplingConfig | SamplingPlan,
    config: EvaluationConfig,
    evaluators: Evaluators,
    reference: Tensor | Gaussian | None,
    *,
    keep: int = 0,
    label: str = "sampling",
    processes: Processes = SINGLE_PROCESS,
) -> Measurement:
    """Sample under the drawn conditions and measure; images stay on the device but for the first `keep`."""
    sample_stats = sample_and_extract(
        pipeline, conditions, sampling, config, evaluators, keep=keep, label=label, processes=processes
    )
    return processes.run_on_main_and_broadcast(
        lambda: compute_metrics(sample_stats, conditions, config, evaluators, reference)
    )


def sample_and_extract(
    pipeline: Pipeline,
    conditions: Sequence[EvalCondition],
    sampling: SamplingConfig | SamplingPlan,
    config: EvaluationConfig,
    evaluators: Evaluators,
    *,
    first: int = 0,
    keep: int = 0,
    label: str = "sampling",
    on_batch: Callable[[int], None] | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> SampleStats:
    """Sample under the drawn conditions but the `first`, and look at the samples, each in its own batch's process.

    What is seen is the first process's to tell, complete and in order; the others get nothing. `on_batch` is told the
    number of samples of each batch, and takes the place of the progress bar named `label`.
    """
    asked = list(conditions[first:])
    options: dict[str, Any] = (
        {"shard": processes.shard} if processes.count > 1 else {}
    )  # what draws without diffusion takes none
    batches = pipeline.generate(
        [each.request for each in asked],
        sampling,
        seed=config.seed,
        first_index=first,
        batch_size=config.batch_size,
        **options,
    )
    places = processes.batch_starts(len(asked), config.batch_size)
    told = progress(places, label) if processes.is_main and on_batch is None else places
    parts: list[tuple[int, SampleStats]] = []
    for place in told:
        start = time.perf_counter()
        images = next(batches)  # (b, 3, H, W)
        _wait(images.device)
        seconds = time.perf_counter() - start
        wanted = asked[place : place + len(images)]
        parts.append((place, _seen(images, wanted, config, evaluators, seconds, max(0, keep - first - place))))
        if on_batch is not None:
            on_batch(min(processes.count * config.batch_size, len(asked) - place))
    for _ in batches:
        raise RuntimeError("more batches than conditions")
    cost = SampleStats(evaluations=pipeline.evaluations)
    if processes.count > 1:
        parts = [
            (
                place,
                replace(
                    part,
                    features=part.features.cpu(),
                    class_probs=part.class_probs.cpu(),
                    text_scores=part.text_scores.cpu(),
                ),
            )
            for place, part in parts
        ]
    everyone = processes.gather((parts, cost))
    in_order = sorted((part for those, _ in everyone for part in those), key=lambda part: part[0])
    return SampleStats.joined([*(part for _, part in in_order), *(each for _, each in everyone)])


def compute_metrics(
    sample_stats: SampleStats,
    conditions: Sequence[EvalCondition],
    config: EvaluationConfig,
    evaluators: Evaluators,
    reference: Tensor | Gaussian | None,
) -> Measurement:
    """The figures of what was seen under these conditions."""
    if sample_stats.count != len(conditions):
        raise ValueError(f"{sample_stats.count} samples were seen under {len(conditions)} conditions")
    figures: tuple[MetricValue, ...] = ()
    judge = evaluators.judge
    if evaluators.extractor is not None and reference is not None:
        samples = Samples(
            reference,
            sample_stats.features.to(reference.device),
            evaluators.extractor,
            [(each.request.prompt, each.request.class_label) for each in conditions],
            sample_stats.class_probs.to(reference.device) if len(sample_stats.class_probs) else None,
            judge.name if judge is not None else "",
            sample_stats.text_scores if len(sample_stats.text_scores) else None,
            evaluators.clip.name if evaluators.clip is not None else "",
        )
        figures = figures_of(samples, config)
    figures += tuple(
        MetricValue(f"accuracy/{name}", f"accuracy[{name}]", score.share, score.standard_error, higher_is_better=True)
        for name, score in sample_stats.scores.items()
    )
    return Measurement(
        figures,
        sample_stats.evaluations / sample_stats.count,
        sample_stats.seconds / sample_stats.count,
        sample_stats.images,
        sample_stats.features,
    )


def _seen(
    images: Tensor,
    told: Sequence[EvalCondition],
    config: EvaluationConfig,
    evaluators: Evaluators,
    seconds: float,
    keep: int,
) -> SampleStats:
    judge, nothing = evaluators.judge, torch.empty(0)
    features = nothing if evaluators.extractor is None else evaluators.extractor(images)
    class_probs, scores = nothing, {}
    if judge is not None:
        scores = judge.score(images, [each.expected_attributes for each in told])
        if judge.class_head and "inception_score" in config.metrics:
            class_probs = judge.probabilities(images)[judge.class_head]
    texts = nothing
    if evaluators.clip is not None:
        texts = evaluators.clip(images, [each.request.prompt for each in told])
    return SampleStats(len(images), features, class_probs, texts, scores, 0, seconds, images[:keep].cpu())


def _cat(parts: Sequence[Tensor]) -> Tensor:
    held = [part for part in parts if len(part)]
    return torch.cat([part.to(held[-1].device) for part in held]) if held else torch.empty(0)


def _wait(device: torch.device) -> None:
    """Let the device finish, so that its time is counted where it is spent."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
