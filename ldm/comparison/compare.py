"""Compare guidance methods and scales on one model: same seeds, same conditions, figures and cost of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ldm.comparison.config import ComparisonConfig
from ldm.comparison.folder import check_folder, claim
from ldm.comparison.halving import round_sizes
from ldm.comparison.methods import Variant, plan, why_not
from ldm.comparison.publish import publish
from ldm.comparison.records import Comparison
from ldm.comparison.runner import ComparisonRunner, told
from ldm.comparison.verdict import verdict_of
from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import EvalCondition, eval_conditions
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators, prepare_evaluators
from ldm.evaluation.manifest import cautions, count_of_reference, describe
from ldm.evaluation.metrics.figures import check_captions, check_numbers
from ldm.evaluation.references import opened_reference
from ldm.runtime.distributed import SINGLE_PROCESS, Processes
from ldm.runtime.errors import UserError
from ldm.runtime.files import fingerprint, sha256_of_file
from ldm.sampling.checks import check_used
from ldm.sampling.config import SamplingConfig, caveats
from ldm.sampling.pipeline import Pipeline

_PARTS = (
    "vae", "unet", "scheduler", "text_encoder", "tokenizer", "classifier", "classifiers/*", "weak_unet",
    "weak_conditioning",
)  # fmt: skip


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
    """Sample and measure every cell and write comparison.json, .csv, .txt, .png, plots and report.html into
    `output_dir`.

    Each cell is stored when it is done, so the same call after an interruption goes on with the next; `model` (see
    `model_identity`) keeps cells of other weights apart; the report says `name` and `command`. `evaluators` default
    to those trained on `train_data`, which defaults to `data`; the floor of the figures is that of `other_data`, which
    defaults to `train_data`. Several `processes` share the samples of each cell. Raises `UserError`, before any work,
    for what the model cannot do and for a folder that holds something else.
    """
    config, sampling = config or ComparisonConfig(), sampling or SamplingConfig()
    evaluation, folder = evaluation or EvaluationConfig(), Path(output_dir)
    guided = why_not("classifier", pipeline, data) is None  # whatever the cells, so that all comparisons ask the same

    def check() -> tuple[list[Variant], dict[str, str], tuple[int, ...]]:
        planned = _plan(pipeline, data, config, sampling, evaluation, guided)
        check_folder(folder)
        sizes = round_sizes(evaluation.num_images, config.rounds, evaluation.batch_size)
        opened_reference(evaluation, data)
        check_captions(evaluation, pipeline.has_text)
        check_numbers(evaluation, sizes[0], count_of_reference(data, evaluation))
        return *planned, sizes

    cells, left_out, sizes = processes.run_on_all(check)
    processes.warn_if_idle(sizes[0], evaluation.batch_size)
    evaluators = evaluators or processes.main_process_first(
        lambda: prepare_evaluators(train_data or data, evaluation, device=pipeline.device)
    )
    drawn = eval_conditions(
        pipeline, data, evaluation.num_images, evaluation.seed, classifier=guided, judge=evaluators.judge
    )
    rows = min(config.rows, sizes[0])
    shared = describe(data, evaluation, evaluators, getattr(pipeline, "folder", None)) | {
        "model": model,
        "sampling": asdict(sampling),
        "metrics": list(evaluation.metrics),
        "rows": rows,
    }
    shared |= {"rounds": list(sizes)} if len(sizes) > 1 else {}
    processes.run_on_main_and_broadcast(lambda: claim(folder, shared))
    bench = ComparisonRunner(pipeline, data, drawn, evaluation, evaluators, shared, folder / "cells", rows, processes)
    rounds, done = bench.run(cells, sizes, config)
    warnings = (*cautions(evaluation.num_images, shared["num_reference"], evaluators), *caveats(sampling))
    other = train_data if other_data is None else other_data
    floor = processes.run_on_main_and_broadcast(lambda: bench.floor(other))
    found = Comparison(done, left_out, shared, warnings, rounds, floor)
    strips = [bench.strip(cell) for cell in cells]
    titles = _row_titles(drawn[:rows], data)
    processes.run_on_main_and_broadcast(
        lambda: publish(found, verdict_of(found, config), folder, strips, titles, name=name, command=command)
    )
    return found


def _plan(
    pipeline: Pipeline,
    data: ImageData,
    config: ComparisonConfig,
    sampling: SamplingConfig,
    evaluation: EvaluationConfig,
    guided: bool,
) -> tuple[list[Variant], dict[str, str]]:
    """The cells and the methods left out, or a refusal; nothing is drawn yet."""
    if evaluation.distances != evaluation.metrics:
        name = next(name for name in evaluation.metrics if name not in evaluation.distances)
        what = "of one model" if name == "memorisation" else "the model's, whatever the guidance"
        raise UserError(f"is {what}", remedy="measure it with `ldm evaluate`", setting="metrics", value=name)
    cells, left_out = plan(
        config.methods,
        pipeline,
        data,
        sampling,
        config.guidance_scales,
        config.classifier_scales,
        config.samplers,
        config.steps,
    )
    drawn = eval_conditions(pipeline, data, evaluation.num_images, evaluation.seed, classifier=guided)
    check_used(*(cell.sampling for cell in cells))
    for cell in cells:
        pipeline.check([each.request for each in told(drawn, pipeline, cell.sampling)], cell.sampling)
    return cells, left_out


def model_identity(*folders: str | Path) -> str:
    """A name for the content of a model folder (and of classifiers and a weak network apart): SHA-256 over their parts.

    Of a training checkpoint its manifest counts, which holds the checksums of the rest.
    """
    digests = {}
    for number, folder in enumerate(folders):
        for part in _PARTS:
            for path in sorted(Path(folder).glob(f"{part}/*")):
                if path.is_file():
                    digests[f"{number}/{path.relative_to(folder)}"] = sha256_of_file(path)
        if (Path(folder) / "manifest.json").is_file():
            digests[f"{number}/manifest.json"] = sha256_of_file(Path(folder) / "manifest.json")
    return fingerprint(digests)


def _row_titles(drawn: Sequence[EvalCondition], data: ImageData) -> list[str]:
    titles = []
    for each in drawn:
        label = each.request.class_label
        titles.append(each.request.prompt or ("" if label is None else data.class_names[label]))
    return titles
