"""Evaluation of a model in training: the same evaluators and real images at every step, so that the steps compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import eval_conditions
from ldm.evaluation.evaluate import reference_features
from ldm.evaluation.evaluators import Evaluators, prepare_evaluators
from ldm.evaluation.features.extractors import inception_extractor
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.manifest import cautions, describe
from ldm.evaluation.measure import measure
from ldm.evaluation.metrics.base import MetricContext, check_metrics
from ldm.evaluation.periodic_config import EvalConfig
from ldm.evaluation.records import EvaluationResult
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.errors import UserError
from ldm.sampling.image_model import ImageModel


class PeriodicEvaluator:
    """Evaluates models of one data set under the same settings again and again.

    The evaluators and the features of the real images are made at the first evaluation.
    """

    def __init__(self, config: EvalConfig, reference: ImageData, train: ImageData, model: ImageModel) -> None:
        """`model` is the untrained one: `UserError` where it, or the data, can never be evaluated so."""
        self.config, self.reference, self.train = config, reference, train
        self.sampling = model.with_defaults(config.sampling())
        self._cached: tuple[Evaluators, Tensor | Gaussian | None] | None = None
        try:
            self._check(model)
        except UserError as error:
            names = [field.name.removeprefix("eval_") for field in fields(config)]
            raise error.with_prefix("eval_", names) from None

    def _check(self, model: ImageModel) -> None:
        config, sampling = self.config.evaluation(), self.sampling
        requests = [condition.request for condition in eval_conditions(model, self.reference, 1, config.seed)]
        model.check(requests, sampling)
        num_reference = min(config.num_reference, len(self.reference))
        plan = MetricContext(config, config.num_images, num_reference, model, self.reference, sampling=sampling)
        check_metrics(config.metrics, plan)
        if config.extractor == "inception" and not inception_extractor(config.inception_weights):
            raise UserError("`extractor` inception: its weights are not here", remedy="give `inception_weights` FILE")

    @property
    def comparable_settings(self) -> dict[str, Any]:
        """What two evaluations must share for their figures to be comparable, as JSON has it."""
        settings = asdict(self.config)
        for name in ("eval_every", "eval_best_by", "eval_batch_size", "eval_inception_weights"):
            del settings[name]
        settings["eval_guidance_scale"] = self.sampling.guidance_scale
        return {**settings, "eval_metrics": list(self.config.eval_metrics), "data": self.reference.fingerprint}

    def __call__(
        self, model: ImageModel, stop: Callable[[], object] = bool, processes: Processes = SINGLE_PROCESS
    ) -> EvaluationResult:
        """Figures of the model as it stands; `EvaluationStopped` as soon as `stop()` is true after a batch.

        Several `processes`, all of which must call this, share the work and ignore `stop`.
        """
        config, sampling = self.config.evaluation(), self.sampling
        if self._cached is None:
            evaluators = processes.main_process_first(
                lambda: prepare_evaluators(self.train, config, device=model.device)
            )
            self._cached = evaluators, reference_features(self.reference, evaluators, config, processes)
        evaluators, features = self._cached
        conditions = eval_conditions(model, self.reference, config.num_images, config.seed, judge=evaluators.judge)
        stop = stop if processes.count == 1 else bool
        args = model, conditions, sampling, config, evaluators, features
        measurement = measure(*args, label="evaluation", stop=stop, processes=processes)
        manifest = describe(self.reference, config, evaluators) | {"sampling": asdict(sampling)}
        manifest["weights"] = "those that the run publishes, at this step"
        return measurement.result(manifest, cautions(config.num_images, manifest["num_reference"], evaluators))
