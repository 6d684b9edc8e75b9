"""Compare guidance methods and scales on one model: same seeds, same conditions, metrics and cost of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ldm.comparison.config import ComparisonConfig
from ldm.comparison.default import check_default, save_default
from ldm.comparison.effects import effect_notes, with_differences, with_targets
from ldm.comparison.folder import check_folder, claimed_folder, recorded_metrics, stored_sampling, write_tables
from ldm.comparison.halving import round_sizes
from ldm.comparison.image_grid import save_side_by_side
from ldm.comparison.methods import Variant, plan_variants, unsupported_reason
from ldm.comparison.ranking import rank_comparison
from ldm.comparison.records import Comparison
from ldm.comparison.report import render, trade_offs, write_csv
from ldm.comparison.runner import ComparisonContext, conditions_for, measure_baseline, run_rounds
from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import EvalCondition, eval_conditions
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators, prepare_evaluators
from ldm.evaluation.manifest import cautions, count_of_reference, describe
from ldm.evaluation.metrics.base import MetricContext, check_metrics
from ldm.evaluation.references import opened_reference
from ldm.evaluation.registry import metrics
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write
from ldm.runtime.text import suggest
from ldm.sampling.checks import check_used
from ldm.sampling.config import ResolvedSampling, SamplingConfig, caveats
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.plan import SamplingPlan


def compare(
    pipeline: Pipeline,
    data: ImageData,
    config: ComparisonConfig | None = None,
    *,
    output_dir: str | Path,
    sampling: SamplingConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    evaluators: Evaluators | None = None,
    train_data: ImageData | None = None,
    other_data: ImageData | None = None,
    model: str = "",
    name: str = "this model",
    command: str = "",
    processes: Processes = SINGLE_PROCESS,
) -> Comparison:
    """Sample and measure every variant and write comparison.json, .csv, .txt, .png, plots and report.html into
    `output_dir`.

    Each run is stored when it is done, so the same call after an interruption goes on with the next; `model` (see
    `model_identity`) separates runs of other weights; the report shows `name` and `command`. `evaluators` default to
    those trained on `train_data`, which defaults to `data`; the real-data baseline is of `other_data`, which defaults
    to `train_data`. Several `processes` share the samples of each run. Raises `UserError`, before any work, for what
    the model does not support and for a folder that holds something else.
    """
    config, folder = config or ComparisonConfig(), Path(output_dir)
    evaluation = recorded_metrics(folder, evaluation or EvaluationConfig())
    with_labels = unsupported_reason("classifier", pipeline, data) is None  # the same conditions whatever the methods

    def check() -> tuple[ResolvedSampling, list[Variant], dict[str, SamplingPlan], dict[str, str], tuple[int, ...]]:
        check_folder(folder)
        base = _base_sampling(pipeline, sampling or SamplingConfig(), folder)
        if config.save_default:
            check_default(pipeline, base)
        _check_decides(config.decide_by, evaluation, data)
        variants, plans, left_out = _plan(pipeline, data, config, base, evaluation, with_labels)
        sizes = round_sizes(evaluation.num_images, config.rounds, evaluation.batch_size)
        opened_reference(evaluation, data)
        num_reference = count_of_reference(data, evaluation)
        check_metrics(evaluation.metrics, MetricContext(evaluation, sizes[0], num_reference, pipeline, data))
        return base, variants, plans, left_out, sizes

    base, variants, plans, left_out, sizes = processes.run_on_all(check)
    processes.warn_if_idle(sizes[0], evaluation.batch_size)
    evaluators = evaluators or processes.main_process_first(
        lambda: prepare_evaluators(train_data or data, evaluation, device=pipeline.device)
    )
    conditions = eval_conditions(
        pipeline, data, evaluation.num_images, evaluation.seed, classifier=with_labels, judge=evaluators.judge
    )
    num_rows = min(config.rows, sizes[0])
    manifest = describe(data, evaluation, evaluators, pipeline.folder)
    manifest |= {"model": model, "sampling": asdict(base), "metrics": list(evaluation.metrics), "rows": num_rows}
    manifest |= {"rounds": list(sizes)} if len(sizes) > 1 else {}
    with claimed_folder(folder, manifest, processes):
        context = ComparisonContext(
            pipeline, plans, data, conditions, evaluation, evaluators, manifest, folder / "cells", num_rows, processes
        )
        rounds, runs = run_rounds(context, variants, sizes, config)
        warnings = (*cautions(evaluation.num_images, manifest["num_reference"], evaluators), *caveats(base))
        warnings += pipeline.notes([condition.request for condition in conditions])
        baseline = measure_baseline(context, train_data if other_data is None else other_data)
        sample_rows = [context.image_path(variant) for variant in variants]
        paths = {variant.label: path for variant, path in zip(variants, sample_rows, strict=True)}
        runs = with_targets(runs, baseline.figures)
        runs = processes.run_on_main_and_broadcast(lambda: with_differences(runs, [paths[run.label] for run in runs]))
        comparison = Comparison(runs, left_out, manifest, (*warnings, *effect_notes(runs)), rounds, baseline)
        if config.save_default:
            ranking, by_label = rank_comparison(comparison, config), {v.label: plans[v.slug] for v in variants}
            note = processes.run_on_main_and_broadcast(lambda: save_default(pipeline, ranking, by_label))
            comparison = replace(comparison, warnings=(*comparison.warnings, note))
        titles = _row_titles(conditions[:num_rows], data)
        processes.run_on_main_and_broadcast(
            lambda: _publish(comparison, config, folder, sample_rows, titles, name=name, command=command)
        )
    return comparison


def _check_decides(metric: str, evaluation: EvaluationConfig, data: ImageData) -> None:
    """`UserError` for a metric that decides and is not measured."""
    attributes, classes = data.attribute_names, set(data.class_names)
    heads = [name for name, values in attributes.items() if len(values) > 1]
    heads += ["class"] if len(classes) > 1 and all(set(attributes[name]) != classes for name in heads) else []
    known = [*evaluation.metrics, *(f"accuracy/{head}" for head in heads if evaluation.judge)]
    if metric and metric not in known:
        raise UserError("is not measured", setting="decide_by", value=metric, remedy=suggest(metric, known))


def _base_sampling(pipeline: Pipeline, sampling: SamplingConfig, folder: Path) -> ResolvedSampling:
    """What all methods start from: unguided, and under the sampler that a comparison which is continued began with."""
    before, steps = stored_sampling(folder) or SamplingConfig(), sampling.num_inference_steps
    return pipeline.with_defaults(
        replace(
            sampling,
            sampler=before.sampler if sampling.sampler is None else sampling.sampler,
            num_inference_steps=before.num_inference_steps
            if (steps := sampling.num_inference_steps) is None
            else steps,
            guidance_scale=1.0 if sampling.guidance_scale is None else sampling.guidance_scale,
        )
    )


def _plan(
    pipeline: Pipeline,
    data: ImageData,
    config: ComparisonConfig,
    sampling: ResolvedSampling,
    evaluation: EvaluationConfig,
    with_labels: bool,
) -> tuple[list[Variant], dict[str, SamplingPlan], dict[str, str]]:
    """The variants, their plans by slug and the methods left out, or a refusal before anything is sampled."""
    if evaluation.model_metrics:
        name = next(name for name in evaluation.metrics if name in evaluation.model_metrics)
        needs_samples = "features" in metrics.info(name).needs
        what = "of one model" if needs_samples else "the model's, whatever the guidance"
        raise UserError(f"is {what}", remedy="measure it with `ldm evaluate`", setting="metrics", value=name)
    variants, left_out = plan_variants(config, pipeline, data, sampling)
    conditions = eval_conditions(pipeline, data, evaluation.num_images, evaluation.seed, classifier=with_labels)
    check_used(*(variant.sampling for variant in variants))
    plans = {variant.slug: pipeline.resolve(variant.sampling) for variant in variants}
    for plan in plans.values():
        pipeline.check([item.request for item in conditions_for(conditions, pipeline, plan.config)], plan)
    return variants, plans, left_out


def _publish(
    comparison: Comparison,
    config: ComparisonConfig,
    folder: Path,
    sample_rows: Sequence[Path],
    titles: Sequence[str],
    *,
    name: str,
    command: str,
) -> None:
    """Write all files; `sample_rows` are the images of the first round's runs, `titles` their conditions."""
    ranking = rank_comparison(comparison, config)
    labels = [run.label for run in comparison.initial_runs]
    save_side_by_side(sample_rows, labels, titles, folder / "comparison.png")
    for plot in trade_offs(comparison.runs, ranking):
        atomic_write(folder / f"{plot.name}.png", plot.scatter.png())
    page = render(comparison, ranking, sample_rows, conditions=titles, command=command, model=name)
    atomic_write(folder / "report.html", page)
    result = comparison.to_json() | {"verdict": ranking.sentence}
    write_tables(folder, "comparison", comparison.table(), write_csv(comparison), result)


def _row_titles(conditions: Sequence[EvalCondition], data: ImageData) -> list[str]:
    """The prompt or the class of each condition."""
    requests = [condition.request for condition in conditions]
    labels = ["" if item.class_label is None else data.class_names[item.class_label] for item in requests]
    return [item.prompt or label for item, label in zip(requests, labels, strict=True)]
