"""What a metric is made of: its inputs, its checks, and how the metrics of a set of samples are measured."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import EvalCondition
from ldm.evaluation.config import EvaluationConfig, LikelihoodConfig
from ldm.evaluation.features.extractors import Extractor, figure_name
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.features.judge import Judge
from ldm.evaluation.intervals import half_samples, interval
from ldm.evaluation.records import Estimate, MetricValue
from ldm.evaluation.registry import RegisteredMetric, metrics
from ldm.runtime.errors import UserError
from ldm.sampling.code_prior import CodePriorModel
from ldm.sampling.config import SamplingConfig
from ldm.sampling.image_model import ImageModel
from samplers.level import short_repr

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Samples:
    """Features of real images (N, D) and of generated ones (M, D), and what else is known of the generated ones.

    `real` may be a Gaussian in place of features, which is enough for fid. `groups`: the condition of each sample.
    `class_probs` (M, K): of the judge named `judge`. `text_scores` (M,): how well each fits its caption by `clip`.
    `appearance` (M, 4): see `ldm.evaluation.features.appearance`.
    """

    real: Tensor | Gaussian
    fake: Tensor
    extractor: Extractor
    groups: Sequence[Hashable] = ()
    class_probs: Tensor | None = None
    judge: str = ""
    text_scores: Tensor | None = None
    clip: str = ""
    appearance: Tensor | None = None
    _shared: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    __repr__ = short_repr

    @cached_property
    def reference(self) -> Gaussian:
        return self.real if isinstance(self.real, Gaussian) else Gaussian.fit(self.real)

    @cached_property
    def real_features(self) -> Tensor:
        """The features of the real images, one by one."""
        if isinstance(self.real, Gaussian):
            raise UserError("the reference holds moments alone, good for fid", setting="metrics")
        return self.real

    def halves(self, config: EvaluationConfig) -> list[Tensor]:
        """Row numbers of random halves of the samples, for intervals."""
        return self.once(_halves, config)

    def once(self, function: Callable[[Samples, EvaluationConfig], _Result], config: EvaluationConfig) -> _Result:
        """`function(samples, config)`, computed once for all metrics of these samples."""
        if (function, config) not in self._shared:
            self._shared[function, config] = function(self, config)
        return self._shared[function, config]


def _halves(samples: Samples, config: EvaluationConfig) -> list[Tensor]:
    return half_samples(len(samples.fake), config.bootstrap, seed=config.seed, device=samples.fake.device)


@dataclass(frozen=True)
class MetricContext:
    """What a metric is going to be measured on: all that is known before any work."""

    config: EvaluationConfig
    num_images: int
    num_reference: int
    model: ImageModel | None = None
    """None for a folder of images."""
    data: ImageData | None = None
    other_data: ImageData | None = None
    """The other split of the data."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True)
class ModelEvaluation:
    """What a metric of a model is measured with, after sampling; without samples `conditions` are ()."""

    context: MetricContext
    judge: Judge | None = None
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    extractor: Extractor | None = None
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    conditions: Sequence[EvalCondition] = ()
    contact_sheet: Path | None = None

    __repr__ = short_repr

    @property
    def model(self) -> ImageModel:
        assert self.context.model is not None
        return self.context.model

    @property
    def data(self) -> ImageData:
        assert self.context.data is not None
        return self.context.data


@dataclass(frozen=True)
class MetricResult:
    """Figures of a model and what they were measured on: `manifest` beside others', `about` where there are none."""

    figures: tuple[MetricValue, ...]
    manifest: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


class Metric(RegisteredMetric):
    """One metric, by the name that it is registered under."""

    least_images = 2
    least_reference = 0

    def check(self, context: MetricContext) -> None:
        """`UserError`, before any work, where what the metric needs is not there."""
        needs, model, least = self.info.needs, context.model, max(self.least_images, self.least_reference)
        if context.num_images < self.least_images or context.num_reference < self.least_reference:
            problem = f"needs {least} images or more, got {context.num_images} against {context.num_reference}"
            raise self.refusal(problem, "take more, or other `metrics` such as fid")
        if "captions" in needs and model is not None and not model.has_text:
            raise self.refusal("needs captions, and this model takes no text", "take other `metrics`")
        if "class_probs" in needs and context.data is not None and not context.data.class_names:
            raise self.refusal(f"{context.data.name} has no classes")
        if "codes" in needs and not isinstance(model, CodePriorModel):
            raise self.refusal("for the output of `ldm train prior`", "this model draws no codes")
        if needs & {"likelihood", "labels"} and isinstance(model, CodePriorModel):
            missing = "likelihood of pixels" if "likelihood" in needs else "classifier"
            raise self.refusal(f"a prior over codes has no {missing}", "take other `metrics`")
        if "training_split" in needs:
            self.training_and_held_out(context)

    def training_and_held_out(self, context: MetricContext) -> tuple[ImageData, ImageData]:
        """Which of the two splits was trained on; `UserError` where one of them is missing."""
        splits = [data for data in (context.data, context.other_data) if data is not None]
        train = [data for data in splits if data.split == "train"]
        held_out = [data for data in splits if data.split != "train"]
        if not train or not held_out:
            name = splits[0].name if splits else "a folder"
            problem = f"{name}: needs the images that were trained on, and held-out ones"
            raise self.refusal(problem, "`validation_fraction` holds some out")
        return train[0], held_out[0]


class SampleMetric(Metric):
    """A metric of samples and a reference alone."""

    def measure(self, samples: Samples, config: EvaluationConfig) -> MetricValue:
        """`UserError` where these samples cannot have it."""
        raise NotImplementedError

    higher_is_better = False

    def value(
        self, samples: Samples, value: float | Estimate, halves: Sequence[float] = (), *, name: str = ""
    ) -> MetricValue:
        """The figure, named after the extractor unless it has a `name`, with the interval of the values of halves."""
        value, error = (value.value, value.standard_error) if isinstance(value, Estimate) else (value, None)
        parts, name = tuple(halves), name or figure_name(self.name, samples.extractor)
        return MetricValue(self.name, name, value, error, self.higher_is_better, interval(value, parts), parts)


class ModelMetric(Metric):
    """A metric that needs the model or its data."""

    def measure(self, evaluation: ModelEvaluation) -> MetricResult:
        raise NotImplementedError


def check_metrics(names: Iterable[str], context: MetricContext) -> None:
    """`UserError`, before any work, for the first metric that cannot be measured."""
    for name in names:
        metrics.get(name).check(context)


def measure_samples(samples: Samples, config: EvaluationConfig) -> tuple[MetricValue, ...]:
    """The metrics of samples that the settings name, in their order."""
    return tuple(metrics.get(name).measure(samples, config) for name in config.sample_metrics)
