"""Evaluate a model against a data set."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.baseline import baseline_of_data
from ldm.evaluation.conditions import eval_conditions, uses_classifier
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators, prepare_evaluators
from ldm.evaluation.features.feature_cache import chosen_indices, features_of
from ldm.evaluation.features.judge import Judge
from ldm.evaluation.likelihood import LikelihoodConfig, refuse_guidance, with_likelihood
from ldm.evaluation.manifest import cautions, count_of_reference, describe
from ldm.evaluation.measure import measure
from ldm.evaluation.metrics.calibration import judge_for, with_calibration
from ldm.evaluation.metrics.figures import check_captions, check_numbers
from ldm.evaluation.metrics.frechet import Gaussian
from ldm.evaluation.metrics.memorisation import memorisation, save_suspects, training_and_held_out
from ldm.evaluation.records import EvaluationResult
from ldm.evaluation.references import opened_reference
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.errors import UserError
from ldm.sampling.config import SamplingConfig, caveats
from ldm.sampling.pipeline import Pipeline


def evaluate_model(
    pipeline: Pipeline,
    data: ImageData,
    sampling: SamplingConfig | None = None,
    config: EvaluationConfig | None = None,
    *,
    evaluators: Evaluators | None = None,
    train_data: ImageData | None = None,
    other_data: ImageData | None = None,
    likelihood: LikelihoodConfig | None = None,
    contact_sheet: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> EvaluationResult:
    """Sample under conditions drawn from `data` and compare with its images; measure their likelihood if asked to.

    `evaluators` default to those trained on `train_data`, which defaults to `data`; they are trained after all checks
    of the model and the data, so a refusal costs nothing. The baseline of the figures is that of the images of
    `other_data`, which defaults to `train_data` where that is not `data`. Memorisation writes its `contact_sheet`.
    Several `processes` share the samples and the reference; the first one does the rest.
    """
    sampling, config = sampling or SamplingConfig(), config or EvaluationConfig()
    if "bits_per_code" in config.metrics:
        raise UserError(
            "for the output of `ldm train prior`",
            remedy="this model draws no codes",
            setting="metrics",
            value="bits_per_code",
        )
    other = train_data if other_data is None else other_data
    if "bits_per_dim" in config.metrics and config.without_samples:
        refuse_guidance(sampling)

    def told(result: EvaluationResult | None, judge: Judge | None) -> EvaluationResult:
        """With what is measured of real images alone."""
        if "bits_per_dim" in config.metrics:
            result = with_likelihood(result, pipeline, data, config, likelihood)
        if "calibration" not in config.metrics:
            assert result is not None
            return result
        return with_calibration(result, pipeline, judge, data, other, config)

    if config.without_samples:
        return processes.run_on_main_and_broadcast(lambda: told(None, judge_for(train_data or data, config, pipeline)))
    target = uses_classifier(sampling)

    def check() -> None:  # refuse before any work
        conditions = eval_conditions(pipeline, data, config.num_images, config.seed, classifier=target)
        pipeline.check([each.request for each in conditions], sampling)
        opened_reference(config, data)
        check_captions(config, pipeline.has_text)
        check_numbers(config, config.num_images, count_of_reference(data, config))
        if config.near:
            training_and_held_out(data, other)

    processes.run_on_all(check)
    processes.warn_if_idle(config.num_images, config.batch_size)
    evaluators = evaluators or processes.main_process_first(
        lambda: prepare_evaluators(train_data or data, config, device=pipeline.device)
    )
    conditions = eval_conditions(
        pipeline, data, config.num_images, config.seed, classifier=target, judge=evaluators.judge
    )
    reference = reference_features(data, evaluators, config, processes)
    found = measure(pipeline, conditions, sampling, config, evaluators, reference, processes=processes)
    floor = processes.run_on_main_and_broadcast(
        lambda: baseline_of_data(other, data, reference, config, evaluators, captions=pipeline.has_text)
    )
    folder = getattr(pipeline, "folder", None)
    manifest = describe(data, config, evaluators, folder)
    manifest |= {"sampling": asdict(sampling), "caveats": caveats(sampling), "floor": floor.provenance}
    result = EvaluationResult(
        found.figures,
        manifest,
        found.evaluations_per_image,
        found.seconds_per_image,
        (*cautions(config.num_images, manifest["num_reference"], evaluators), *caveats(sampling)),
        floor.figures,
    )

    def whole() -> EvaluationResult:
        with_copies = result
        if config.near and evaluators.extractor is not None:
            train, held_out = training_and_held_out(data, other)
            copies = memorisation(found.features, evaluators.extractor, train, held_out, config)
            if contact_sheet is not None:
                save_suspects(contact_sheet, copies, pipeline, conditions, sampling, config, train)
            facts = {**result.manifest, "memorisation": copies.facts}
            with_copies = replace(result, figures=result.figures + copies.figures, manifest=facts)
        return told(with_copies, evaluators.judge)

    return processes.run_on_main_and_broadcast(whole)


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
