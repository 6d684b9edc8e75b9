"""The metrics of generated images by name: from features to figures with errors and intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.extractors import Extractor, figure_name
from ldm.evaluation.metrics.class_scores import inception_score
from ldm.evaluation.metrics.frechet import Gaussian, frechet_distance
from ldm.evaluation.metrics.frechet_variants import distance_of_slices, extrapolated_frechet_distance, slices_of
from ldm.evaluation.metrics.intervals import half_samples, interval
from ldm.evaluation.metrics.kid import kernel_distance
from ldm.evaluation.metrics.manifold import DENSITY_K, MOST, ManifoldScores, Neighbourhoods
from ldm.evaluation.metrics.neighbours import diversity
from ldm.evaluation.records import MetricValue
from ldm.runtime.errors import UserError

_OF_MANIFOLD = tuple(field.name for field in fields(ManifoldScores))


@dataclass(frozen=True)
class Samples:
    """What is measured: features of real images (N, D) and of generated ones (M, D), and what else is known of these.

    `real` may be a Gaussian in place of features, which is enough for fid.

    `groups`: the condition of each. `class_probs` (M, K): the judge's opinion on their class, `judge` its name.
    `text_scores` (M,): how well each fits its caption by `clip`.
    """

    real: Tensor | Gaussian
    fake: Tensor
    extractor: Extractor
    groups: Sequence[Hashable] = ()
    class_probs: Tensor | None = None
    judge: str = ""
    text_scores: Tensor | None = None
    clip: str = ""

    @cached_property
    def reference(self) -> Gaussian:
        return self.real if isinstance(self.real, Gaussian) else Gaussian.fit(self.real)

    @cached_property
    def real_features(self) -> Tensor:
        """The features of the real images, one by one."""
        if isinstance(self.real, Gaussian):
            raise UserError("the reference holds moments alone, good for fid", setting="metrics")
        return self.real


def check_numbers(config: EvaluationConfig, num_images: int, num_reference: int) -> None:
    """`UserError`, before any work, for a metric that needs more images than there will be."""
    for metric in config.distances:
        least = {"fid_infinity": 20, **dict.fromkeys(_OF_MANIFOLD, 2 * DENSITY_K + 1)}.get(metric, 2)
        if num_images < least or (metric in _OF_MANIFOLD and num_reference < least):
            raise UserError(
                f"needs {least} images or more, got {num_images} against {num_reference}",
                remedy="take more, or other `metrics` such as fid",
                setting="metrics",
                value=metric,
            )


def check_captions(config: EvaluationConfig, has_text: bool) -> None:
    """`UserError`, before any work, for a metric of captions of a model that takes none."""
    if "clip_score" in config.metrics and not has_text:
        raise UserError(
            "needs captions, and this model takes no text",
            remedy="take other `metrics`",
            setting="metrics",
            value="clip_score",
        )


def figures_of(samples: Samples, config: EvaluationConfig) -> tuple[MetricValue, ...]:
    """The figures that the settings ask for, in their order; `UserError` for one that these samples cannot have."""
    halves = half_samples(len(samples.fake), config.bootstrap, seed=config.seed)
    found: dict[str, MetricValue] = {}
    for metric in config.distances:
        if metric not in found:
            found |= {figure.metric: figure for figure in _MAKERS[metric](metric, samples, config, halves)}
    return tuple(found[metric] for metric in config.distances)


def _frechet(metric: str, samples: Samples, config: EvaluationConfig, halves: Sequence[Tensor]) -> list[MetricValue]:
    def distance(fake: Tensor) -> float:
        return frechet_distance(samples.reference, Gaussian.fit(fake))

    parts = tuple(distance(samples.fake[half.to(samples.fake.device)]) for half in halves)
    return [_figure(metric, samples, distance(samples.fake), parts)]


def _sliced(metric: str, samples: Samples, config: EvaluationConfig, halves: Sequence[Tensor]) -> list[MetricValue]:
    real, fake = slices_of(samples.real_features, seed=config.seed), slices_of(samples.fake, seed=config.seed)
    dim = samples.real_features.shape[1]
    parts = tuple(distance_of_slices(real, fake[half.to(fake.device)], dim) for half in halves)
    return [_figure(metric, samples, distance_of_slices(real, fake, dim), parts)]


def _kernel(metric: str, samples: Samples, config: EvaluationConfig, halves: Sequence[Tensor]) -> list[MetricValue]:
    found = kernel_distance(samples.real_features, samples.fake, seed=config.seed)
    return [MetricValue(metric, figure_name(metric, samples.extractor), found.value, found.standard_error)]


def _extrapolated(
    metric: str, samples: Samples, config: EvaluationConfig, halves: Sequence[Tensor]
) -> list[MetricValue]:
    found = extrapolated_frechet_distance(samples.real_features, samples.fake, seed=config.seed)
    return [MetricValue(metric, figure_name(metric, samples.extractor), found.value, found.standard_error)]


def _manifold(metric: str, samples: Samples, config: EvaluationConfig, halves: Sequence[Tensor]) -> list[MetricValue]:
    """All four at once, for they need the same distances."""
    real, fake = (_at_most(features, MOST, config.seed) for features in (samples.real_features, samples.fake))
    around = Neighbourhoods(real, fake)
    whole = around.scores()
    if len(fake) != len(samples.fake):
        halves = half_samples(len(fake), len(halves), seed=config.seed)
    parts = [around.scores(half.to(fake.device)) for half in halves]
    found = [
        _figure(name, samples, getattr(whole, name), tuple(getattr(part, name) for part in parts), higher=True)
        for name in _OF_MANIFOLD
    ]
    return [figure if figure.metric == "density" else _within_shares(figure) for figure in found]


def _within_shares(figure: MetricValue) -> MetricValue:
    """A share's interval ends at 0 and 1."""
    if figure.interval is None:
        return figure
    low, high = figure.interval
    return replace(figure, interval=(max(low, 0.0), min(high, 1.0)))


def _inception_score(
    metric: str, samples: Samples, config: EvaluationConfig, halves: Sequence[Tensor]
) -> list[MetricValue]:
    if samples.class_probs is None:
        raise UserError(
            "needs a judge of classes, which this data does not give", setting="metrics", value="inception_score"
        )
    splits = min(10, len(samples.class_probs) // 2)
    found = inception_score(samples.class_probs, splits=splits, seed=config.seed)
    return [MetricValue(metric, f"IS[{samples.judge}]", found.value, found.standard_error, higher_is_better=True)]


def _clip_score(metric: str, samples: Samples, config: EvaluationConfig, halves: Sequence[Tensor]) -> list[MetricValue]:
    scores = samples.text_scores
    if scores is None:
        raise UserError("needs captions, which this model is not told", setting="metrics", value="clip_score")
    error = float(scores.double().std() / len(scores) ** 0.5)
    value, parts = float(scores.double().mean()), tuple(float(scores[half.to(scores.device)].mean()) for half in halves)
    name = f"CLIP score[{samples.clip}]"
    return [
        MetricValue(metric, name, value, error, higher_is_better=True, interval=interval(value, parts), halves=parts)
    ]


def _diversity(metric: str, samples: Samples, config: EvaluationConfig, halves: Sequence[Tensor]) -> list[MetricValue]:
    groups = list(samples.groups) or [0] * len(samples.fake)
    if len(set(groups)) == len(groups):
        raise UserError(
            "no condition has two images",
            remedy="draw more of them, or of fewer conditions",
            setting="metrics",
            value="diversity",
        )
    value = diversity(samples.fake, groups)
    parts = []
    for half in halves:
        chosen = [groups[number] for number in half.tolist()]
        if len(set(chosen)) < len(chosen):
            parts.append(diversity(samples.fake[half.to(samples.fake.device)], chosen))
    return [_figure(metric, samples, value, tuple(parts), higher=True)]


def _figure(
    metric: str, samples: Samples, value: float, halves: tuple[float, ...], higher: bool = False
) -> MetricValue:
    name = figure_name(metric, samples.extractor)
    return MetricValue(metric, name, value, None, higher, interval(value, halves), halves)


def _at_most(features: Tensor, most: int, seed: int) -> Tensor:
    if len(features) <= most:
        return features
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:most]
    return features[chosen.to(features.device)]


_Maker = Callable[[str, Samples, EvaluationConfig, Sequence[Tensor]], list[MetricValue]]
_MAKERS: dict[str, _Maker] = {
    "fid": _frechet,
    "kid": _kernel,
    "sliced_fid": _sliced,
    "fid_infinity": _extrapolated,
    "inception_score": _inception_score,
    "diversity": _diversity,
    "clip_score": _clip_score,
    **dict.fromkeys(_OF_MANIFOLD, _manifold),
}
