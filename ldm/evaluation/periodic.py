"""Evaluation of a model in training: the same evaluators and real images at every step, so that the steps compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import eval_conditions
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import reference_features
from ldm.evaluation.evaluators import Evaluators, prepare_evaluators
from ldm.evaluation.features.extractors import inception_extractor
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.manifest import cautions, describe
from ldm.evaluation.measure import measure
from ldm.evaluation.metrics.base import MetricContext, check_metrics
from ldm.evaluation.records import EvaluationResult
from ldm.evaluation.registry import metrics as registry
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.errors import UserError, at_least
from ldm.runtime.text import suggest
from ldm.sampling.config import SamplingConfig
from ldm.sampling.image_model import ImageModel


@dataclass(frozen=True)
class EvalConfig:
    """How often a training draws samples of the averaged weights, and what is measured of them."""

    eval_every: int = 0
    """Draw samples of the averaged weights and measure them every so many steps, and at the end; 0: never. The best
    model so far is in best/, the figures with their manifest in evaluations/."""
    eval_metrics: tuple[str, ...] = ("fid", "kid")
    """What is measured: fid, kid, precision, recall, ...; see `ldm evaluate --help`. Where the data has attributes or
    labels, a judge also measures how often the images show those of their condition."""
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
            raise UserError(f"expected one or more of {', '.join(_metrics())}", setting="eval_metrics")
        for name in self.eval_metrics:
            if name not in registry.names() or not _allowed(name):
                raise UserError(f"unknown metric {name!r}", remedy=suggest(name, _metrics()), setting="eval_metrics")
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
        own = asdict(self)
        shared = {f.name: own[f"eval_{f.name}"] for f in fields(EvaluationConfig) if f"eval_{f.name}" in own}
        return EvaluationConfig(**shared, bootstrap=0)


def _allowed(name: str) -> bool:
    """Whether a metric can be measured in training: of samples, without CLIP, which is too large there."""
    info = registry.info(name)
    return info.of_samples and "captions" not in info.needs


def _metrics() -> tuple[str, ...]:
    return tuple(name for name in registry.names() if _allowed(name))


@dataclass(frozen=True)
class DiffusionEvalConfig(EvalConfig):
    """As `EvalConfig`, with the sampler of a diffusion model."""

    eval_sampler: str = "ddim"
    """Sampler of these samples."""
    eval_num_inference_steps: int = 25
    """Sampling steps of these samples."""

    def sampling(self) -> SamplingConfig:
        return replace(super().sampling(), sampler=self.eval_sampler, num_inference_steps=self.eval_num_inference_steps)


class PeriodicEvaluator:
    """Evaluates models of one data set under the same settings again and again.

    The evaluators and the features of the real images are made at the first evaluation.
    """

    def __init__(self, config: EvalConfig, reference: ImageData, train: ImageData, model: ImageModel) -> None:
        """`model` is the untrained one: `UserError` where it, or the data, can never be evaluated so."""
        self.config, self.reference, self.train = config, reference, train
        self._cached: tuple[Evaluators, Tensor | Gaussian | None] | None = None
        try:
            self._check(model)
        except UserError as error:
            names = [field.name.removeprefix("eval_") for field in fields(config)]
            raise error.with_prefix("eval_", names) from None

    def _check(self, model: ImageModel) -> None:
        config, sampling = self.config.evaluation(), self.config.sampling()
        requests = [condition.request for condition in eval_conditions(model, self.reference, 1, config.seed)]
        model.check(requests, sampling)
        num_reference = min(config.num_reference, len(self.reference))
        plan = MetricContext(config, config.num_images, num_reference, model, self.reference, sampling=sampling)
        check_metrics(config.metrics, plan)
        if config.extractor == "inception" and not inception_extractor(config.inception_weights):
            raise UserError(
                "its weights are not here",
                remedy="give `inception_weights` FILE",
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
        self,
        model: ImageModel,
        stop: Callable[[], object] = bool,
        processes: Processes = SINGLE_PROCESS,
    ) -> EvaluationResult:
        """Figures of the model as it stands; `EvaluationStopped` as soon as `stop()` is true after a batch.

        Several `processes`, all of which must call this, share the work and ignore `stop`.
        """
        config, sampling = self.config.evaluation(), self.config.sampling()
        if self._cached is None:
            evaluators = processes.main_process_first(
                lambda: prepare_evaluators(self.train, config, device=model.device)
            )
            self._cached = evaluators, reference_features(self.reference, evaluators, config, processes)
        evaluators, features = self._cached
        conditions = eval_conditions(model, self.reference, config.num_images, config.seed, judge=evaluators.judge)
        measurement = measure(
            model,
            conditions,
            sampling,
            config,
            evaluators,
            features,
            label="evaluation",
            stop=stop if processes.count == 1 else bool,
            processes=processes,
        )
        manifest = describe(self.reference, config, evaluators) | {"sampling": asdict(sampling)}
        manifest["weights"] = "those that the run publishes, at this step"
        return EvaluationResult(
            measurement.figures,
            manifest,
            measurement.evaluations_per_image,
            measurement.seconds_per_image,
            cautions(config.num_images, manifest["num_reference"], evaluators),
        )
