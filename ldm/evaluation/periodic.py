"""Evaluation of a model in training: the same instruments and real images at every step, so that the steps compare."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import eval_conditions
from ldm.evaluation.config import DISTANCES, EvaluationConfig
from ldm.evaluation.evaluate import reference_features
from ldm.evaluation.evaluators import Evaluators, prepare_evaluators
from ldm.evaluation.features.extractors import inception_extractor
from ldm.evaluation.manifest import cautions, describe
from ldm.evaluation.measure import measure
from ldm.evaluation.metrics.figures import check_numbers
from ldm.evaluation.metrics.frechet import Gaussian
from ldm.evaluation.records import EvaluationResult
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.errors import UserError, at_least
from ldm.runtime.text import suggest
from ldm.sampling.config import SamplingConfig
from ldm.sampling.pipeline import Pipeline

_METRICS = tuple(name for name in DISTANCES if name != "clip_score")  # a CLIP is too much for a training


@dataclass(frozen=True)
class EvalConfig:
    """How often a training draws samples of the averaged weights, and what is measured of them."""

    eval_every: int = 0
    """Draw samples of the averaged weights and measure them every so many steps, and at the end; 0: never. The best
    model so far is kept in best/, the figures with all that they hold for in evaluations/."""
    eval_metrics: tuple[str, ...] = ("fid", "kid")
    """What is measured: fid, kid, precision, recall, ...; see `ldm evaluate --help`. Where the data has attributes or
    labels, a judge also tells how often the pictures show what was asked for."""
    eval_best_by: str = ""
    """Which of `eval_metrics` chooses the model in best/; unset: the first."""
    eval_num_images: int = 1000
    """Samples of an evaluation. Compare only figures of equal numbers."""
    eval_num_reference: int = 10000
    """Real images to compare with; drawn at random if there are more."""
    eval_split: Literal["validation", "train"] = "validation"
    """Which images of the data are the reference."""
    eval_guidance_scale: float = 1.0
    """Guidance scale of these samples; 1 is the conditional model."""
    eval_seed: int = 0
    """Seed of these samples and of the choice of conditions, the same at every step."""
    eval_batch_size: int = 64
    """Samples at a time."""
    eval_extractor: Literal["auto", "inception", "trained"] = "auto"
    """Features: inception, trained (a small network trained on the data set), auto: inception where its weights are."""
    eval_inception_weights: str | None = None
    """The file inception-2015-12-05.pt; default: where clean-fid keeps it."""

    def __post_init__(self) -> None:
        at_least(self, eval_every=0, eval_num_images=4, eval_num_reference=4, eval_batch_size=1, eval_seed=0)
        at_least(self, eval_guidance_scale=0)
        if not self.eval_metrics:
            raise UserError(f"expected one or more of {', '.join(_METRICS)}", setting="eval_metrics")
        for name in self.eval_metrics:
            if name not in _METRICS:
                raise UserError(f"unknown metric {name!r}", remedy=suggest(name, _METRICS), setting="eval_metrics")
        if self.eval_best_by and self.eval_best_by not in self.eval_metrics:
            known = suggest(self.eval_best_by, self.eval_metrics)
            raise UserError("not one of `eval_metrics`", setting="eval_best_by", value=self.eval_best_by, remedy=known)

    @property
    def best_by(self) -> str:
        """The metric that chooses the best model."""
        return self.eval_best_by or self.eval_metrics[0]

    def sampling(self) -> SamplingConfig:
        """How the samples are drawn."""
        return SamplingConfig(guidance_scale=self.eval_guidance_scale)

    def evaluation(self) -> EvaluationConfig:
        """The same settings as `ldm evaluate` has them, without intervals, which choose nothing."""
        return EvaluationConfig(
            metrics=self.eval_metrics,
            num_images=self.eval_num_images,
            num_reference=self.eval_num_reference,
            seed=self.eval_seed,
            batch_size=self.eval_batch_size,
            extractor=self.eval_extractor,
            inception_weights=self.eval_inception_weights,
            bootstrap=0,
        )


@dataclass(frozen=True)
class DiffusionEvalConfig(EvalConfig):
    """As `EvalConfig`, with the sampler of a diffusion model."""

    eval_sampler: str = "ddim"
    """Sampler of these samples."""
    eval_num_inference_steps: int = 25
    """Sampling steps of these samples."""

    def sampling(self) -> SamplingConfig:
        return replace(super().sampling(), sampler=self.eval_sampler, num_inference_steps=self.eval_num_inference_steps)


class EvaluationStopped(Exception):  # noqa: N818  (not an error)
    """The process was asked to stop before all samples were drawn."""


class PeriodicEvaluator:
    """Evaluates models of one data set under the same settings again and again.

    Instruments and the features of the real images are made at the first evaluation and kept.
    """

    def __init__(self, config: EvalConfig, reference: ImageData, train: ImageData, pipeline: Pipeline) -> None:
        """`pipeline` is the untrained model: `UserError` for what it, or the data, can never be evaluated by."""
        self.config, self.reference, self.train = config, reference, train
        self._made: tuple[Evaluators, Tensor | Gaussian | None] | None = None
        with _own_flags():
            evaluation = config.evaluation()
            requests = [each.request for each in eval_conditions(pipeline, reference, 1, config.eval_seed)]
            pipeline.check(requests, config.sampling())
            check_numbers(evaluation, evaluation.num_images, min(evaluation.num_reference, len(reference)))
            if "inception_score" in config.eval_metrics and not reference.class_names:
                raise UserError(f"{reference.name} has no classes", setting="eval_metrics", value="inception_score")
            if config.eval_extractor == "inception" and not inception_extractor(config.eval_inception_weights):
                raise UserError(
                    "its weights are not here",
                    remedy="give `eval_inception_weights` FILE",
                    setting="extractor",
                    value="inception",
                )

    @property
    def comparable_settings(self) -> dict[str, Any]:
        """What two evaluations must share for their figures to be comparable, as JSON has it."""
        settings = asdict(self.config)
        for name in ("eval_every", "eval_best_by", "eval_batch_size", "eval_inception_weights"):
            del settings[name]
        return {**settings, "eval_metrics": list(self.config.eval_metrics), "data": self.reference.fingerprint}

    def __call__(
        self, pipeline: Pipeline, stop: Callable[[], object] = bool, processes: Processes = SINGLE_PROCESS
    ) -> EvaluationResult:
        """Figures of the model as it stands; `EvaluationStopped` as soon as `stop()` is true after a batch.

        Several `processes`, all of which must call this, share the work; they do not listen to `stop`.
        """
        config, sampling = self.config.evaluation(), self.config.sampling()
        if self._made is None:
            evaluators = processes.main_process_first(
                lambda: prepare_evaluators(self.train, config, device=pipeline.device)
            )
            self._made = evaluators, reference_features(self.reference, evaluators, config, processes)
        evaluators, features = self._made
        conditions = eval_conditions(pipeline, self.reference, config.num_images, config.seed, judge=evaluators.judge)
        drawing: Any = _Stoppable(pipeline, stop) if processes.count == 1 else pipeline
        found = measure(
            drawing, conditions, sampling, config, evaluators, features, label="evaluation", processes=processes
        )
        manifest = describe(self.reference, config, evaluators) | {"sampling": asdict(sampling)}
        manifest["weights"] = "those that the run publishes, at this step"
        return EvaluationResult(
            found.figures,
            manifest,
            found.evaluations_per_image,
            found.seconds_per_image,
            cautions(config.num_images, manifest["num_reference"], evaluators),
        )


class _Stoppable:
    """A pipeline whose samples end with `EvaluationStopped` when asked to."""

    def __init__(self, pipeline: Pipeline, stop: Callable[[], object]) -> None:
        self._pipeline, self._stop = pipeline, stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def generate(self, *arguments: Any, **settings: Any) -> Iterator[Tensor]:
        for batch in self._pipeline.generate(*arguments, **settings):
            if self._stop():
                raise EvaluationStopped
            yield batch


@contextmanager
def _own_flags() -> Iterator[None]:
    """Name a setting in a refusal by the flag that sets it here: `eval_num_images` for `num_images`."""
    own = "|".join(each.name.removeprefix("eval_") for each in fields(DiffusionEvalConfig))
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(rf"`(?=(?:{own})`)", "`eval_", str(error))) from None
