"""Evaluate a model against a data set."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.baseline import baseline_of_data
from ldm.evaluation.conditions import eval_conditions, uses_classifier
from ldm.evaluation.config import EvaluationConfig, LikelihoodConfig
from ldm.evaluation.evaluators import Evaluators, prepare_evaluators, prepare_judge
from ldm.evaluation.features.feature_cache import chosen_indices, features_of
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.manifest import cautions, count_of_reference, describe
from ldm.evaluation.measure import measure
from ldm.evaluation.metrics.base import MetricContext, ModelEvaluation, check_metrics
from ldm.evaluation.records import EvaluationResult
from ldm.evaluation.references import opened_reference
from ldm.evaluation.registry import metrics
from ldm.evaluation.sample_stats import StatsStore
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.sampling.code_prior import CodePriorModel
from ldm.sampling.config import SamplingConfig, caveats
from ldm.sampling.effects import without_effect
from ldm.sampling.image_model import ImageModel, Plan


def evaluate_model(
    model: ImageModel,
    data: ImageData,
    sampling: SamplingConfig | None = None,
    config: EvaluationConfig | None = None,
    *,
    evaluators: Evaluators | None = None,
    train_data: ImageData | None = None,
    other_data: ImageData | None = None,
    likelihood: LikelihoodConfig | None = None,
    contact_sheet: Path | None = None,
    store: StatsStore | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> EvaluationResult:
    """Sample under conditions drawn from `data` and measure the metrics of samples, then those of the model itself.

    Of a prior over codes the bits a code are measured in any case, and come first. `evaluators` default to those
    trained on `train_data`, which defaults to `data`; they are trained after all checks, so a refusal costs nothing.
    The baseline of the figures is that of the images of `other_data`, which defaults to `train_data` where that is not
    `data`. Memorisation writes its `contact_sheet`. Batches and metrics in the `store` are read, the others
    stored there. Several `processes` share the samples and the reference; the first one does the rest.
    """
    sampling, config = sampling or SamplingConfig(), config or EvaluationConfig()
    likelihood_config = likelihood or LikelihoodConfig()
    other = train_data if other_data is None else other_data
    first = metrics.needing("codes") if isinstance(model, CodePriorModel) else ()
    names = tuple(dict.fromkeys((*first, *config.model_metrics)))
    context = MetricContext(config, config.num_images, config.num_reference, model, data, other, sampling)
    resolved = model.with_defaults(sampling)

    def with_model_metrics(result: EvaluationResult | None, evaluation: ModelEvaluation) -> EvaluationResult:
        for name in names:
            metric = metrics.get(name)
            if "features" in metric.info.needs and evaluation.extractor is None:
                continue
            values = metric.measure(evaluation) if store is None else store.remember(name, metric, evaluation)
            if result is None:
                result = EvaluationResult(values.figures, values.about | values.manifest)
                continue
            before, after = (values, result) if name in first else (result, values)
            figures = (*before.figures, *after.figures)
            result = replace(result, figures=figures, manifest={**result.manifest, **values.manifest})
        assert result is not None
        return result

    def without_samples() -> EvaluationResult:
        check_metrics(names, context)
        judge = prepare_judge(train_data or data, config, model.device) if "labels" in config.needs else None
        return with_model_metrics(None, ModelEvaluation(context, judge, likelihood_config))

    if config.without_samples:
        return processes.run_on_main_and_broadcast(without_samples)
    target = uses_classifier(resolved)

    def check() -> Plan:  # refuse before any work
        check_metrics(names, context)
        conditions = eval_conditions(model, data, config.num_images, config.seed, classifier=target)
        requests = [condition.request for condition in conditions]
        plan: Plan = model.resolve(model.with_defaults(sampling, requests))
        model.check(requests, plan)
        opened_reference(config, data)
        check_metrics(config.sample_metrics, replace(context, num_reference=count_of_reference(data, config)))
        return plan

    plan = processes.run_on_all(check)
    processes.warn_if_idle(config.num_images, config.batch_size)
    evaluators = evaluators or processes.main_process_first(
        lambda: prepare_evaluators(train_data or data, config, device=model.device)
    )
    conditions = eval_conditions(model, data, config.num_images, config.seed, classifier=target, judge=evaluators.judge)
    reference = reference_features(data, evaluators, config, processes)
    measurement = measure(model, conditions, plan, config, evaluators, reference, store=store, processes=processes)
    baseline = processes.run_on_main_and_broadcast(
        lambda: baseline_of_data(other, data, reference, config, evaluators, captions=model.has_text)
    )
    manifest = describe(data, config, evaluators, model.folder)
    manifest |= {"sampling": asdict(plan.config), "caveats": caveats(plan.config), "floor": baseline.provenance}
    notes = (*cautions(config.num_images, manifest["num_reference"], evaluators), *caveats(plan.config))
    notes += model.notes([condition.request for condition in conditions], plan)
    notes += tuple(without_effect(model.effects, notes))
    result = measurement.result(manifest, notes, baseline.figures)
    samples = evaluators.extractor, measurement.features, conditions, contact_sheet
    evaluation = ModelEvaluation(context, evaluators.judge, likelihood_config, *samples)
    return processes.run_on_main_and_broadcast(lambda: with_model_metrics(result, evaluation))


def reference_features(
    data: ImageData, evaluators: Evaluators, config: EvaluationConfig, processes: Processes = SINGLE_PROCESS
) -> Tensor | Gaussian | None:
    """Features (N, D) of the real images, from the `reference`, the cache or computed; None where none are needed.

    Of several processes the first has them all, the others their own.
    """
    extractor = evaluators.extractor
    if extractor is None:
        return None
    if (file := opened_reference(config, data)) is not None:
        return file.real_for(extractor)
    indices = chosen_indices(len(data), config.num_reference, config.seed)
    size = config.batch_size
    return features_of(extractor, data, indices, batch_size=size, label="features of the data", processes=processes)
