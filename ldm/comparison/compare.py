"""Compare guidance methods and scales on one model: same seeds, same conditions, figures and cost of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ldm.branches import check_used
from ldm.comparison.config import ComparisonConfig
from ldm.comparison.folder import check_folder, claim
from ldm.comparison.methods import Variant, plan, why_not
from ldm.comparison.picture import save_strip, side_by_side
from ldm.comparison.records import Cell, Comparison
from ldm.comparison.report import render, write_csv
from ldm.comparison.verdict import verdict_of
from ldm.data.protocol import ImageData
from ldm.errors import UserError
from ldm.evaluation.conditions import Drawn, draw_conditions, uses_classifier
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import reference_features
from ldm.evaluation.floor import Floor, floor_of_data
from ldm.evaluation.instruments import Instruments, prepare_instruments
from ldm.evaluation.manifest import cautions, count_of_reference, describe
from ldm.evaluation.measure import measure
from ldm.evaluation.metrics import check_captions, check_numbers
from ldm.evaluation.records import EvaluationResult, figures_from_json, finite
from ldm.evaluation.references import opened_reference
from ldm.files import atomic_write, atomic_write_json, fingerprint, read_json, sha256_of_file
from ldm.peak_memory import PeakMemory
from ldm.pipeline import Pipeline, SamplingConfig

RESULT, TABLE, PICTURE = "comparison.json", "comparison.txt", "comparison.png"
FLOOR = "floor.json"
CSV, REPORT = "comparison.csv", "report.html"

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
    instruments: Instruments | None = None,
    train_data: ImageData | None = None,
    other_data: ImageData | None = None,
    model: str = "",
    name: str = "this model",
    command: str = "",
) -> Comparison:
    """Sample and measure every cell and write comparison.json, .csv, .txt, .png and report.html into `output_dir`.

    Each cell is stored when it is done, so the same call after an interruption goes on with the next; `model` (see
    `model_identity`) keeps cells of other weights apart; the report says `name` and `command`. `instruments` default
    to those trained on `train_data`, which defaults to `data`; the floor of the figures is that of `other_data`, which
    defaults to `train_data`. Raises `UserError`, before any work, for what the model
    cannot do and for a folder that holds something else.
    """
    config, sampling = config or ComparisonConfig(), sampling or SamplingConfig()
    evaluation = evaluation or EvaluationConfig()
    if evaluation.distances != evaluation.metrics:
        name = next(name for name in evaluation.metrics if name not in evaluation.distances)
        what = "of one model" if name == "memorisation" else "the model's, whatever the guidance"
        raise UserError(f"--metrics {name}: is {what}; measure it with `ldm evaluate`")
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
    guided = why_not("classifier", pipeline, data) is None  # whatever the cells, so that all comparisons ask the same
    drawn = draw_conditions(pipeline, data, evaluation.num_images, evaluation.seed, classifier=guided)
    check_used(*(cell.sampling for cell in cells))
    for cell in cells:
        pipeline.check([each.request for each in _told(drawn, pipeline, cell)], cell.sampling)
    folder = Path(output_dir)
    check_folder(folder)
    opened_reference(evaluation, data)
    check_captions(evaluation, pipeline.has_text)
    check_numbers(evaluation, evaluation.num_images, count_of_reference(data, evaluation))

    instruments = instruments or prepare_instruments(train_data or data, evaluation, device=pipeline.device)
    drawn = draw_conditions(
        pipeline, data, evaluation.num_images, evaluation.seed, classifier=guided, judge=instruments.judge
    )
    rows = min(config.rows, evaluation.num_images)
    shared = describe(data, evaluation, instruments, getattr(pipeline, "folder", None)) | {
        "model": model,
        "sampling": asdict(sampling),
        "metrics": list(evaluation.metrics),
        "rows": rows,
    }
    claim(folder, shared)
    reference = None
    done = []
    for number, cell in enumerate(cells, 1):
        place, strip = folder / "cells" / f"{cell.slug}.json", folder / "cells" / f"{cell.slug}.png"
        if not place.is_file():
            if reference is None:
                reference = reference_features(data, instruments, evaluation)
            with PeakMemory(pipeline.device) as peak:
                found = measure(
                    pipeline,
                    _told(drawn, pipeline, cell),
                    cell.sampling,
                    evaluation,
                    instruments,
                    reference,
                    keep=rows,
                    label=f"{cell.label} ({number} of {len(cells)})",
                )
            result = EvaluationResult(
                found.figures,
                shared | {"sampling": asdict(cell.sampling)},
                found.evaluations_per_image,
                found.seconds_per_image,
            )
            save_strip(found.images, strip)
            way = cell.sampling.sampler, cell.sampling.num_inference_steps, peak.bytes
            record = Cell(cell.label, cell.method, cell.guidance_scale, cell.classifier_scale, *way, result)
            atomic_write_json(place, record.to_json())  # last: with it the cell is done
        done.append(Cell.from_json(read_json(place)))
    warnings = cautions(evaluation.num_images, shared["num_reference"], instruments)
    if not (folder / FLOOR).is_file():
        if reference is None:
            reference = reference_features(data, instruments, evaluation)
        other = train_data if other_data is None else other_data
        floor = floor_of_data(other, data, reference, evaluation, instruments, captions=pipeline.has_text)
        atomic_write_json(folder / FLOOR, finite(asdict(floor)))
    kept = read_json(folder / FLOOR)
    floor = Floor(figures_from_json(kept["figures"]), kept["facts"])
    comparison = Comparison(tuple(done), left_out, shared, warnings, floor)
    strips = [folder / "cells" / f"{cell.slug}.png" for cell in cells]
    titles = _row_titles(drawn[:rows], data)
    side_by_side(strips, [cell.label for cell in cells], titles, folder / PICTURE)
    atomic_write(folder / TABLE, comparison.table() + "\n")
    atomic_write(folder / CSV, write_csv(comparison))
    verdict = verdict_of(comparison, config)
    page = render(comparison, verdict, strips, conditions=titles, command=command, model=name)
    atomic_write(folder / REPORT, page)
    atomic_write_json(folder / RESULT, comparison.to_json() | {"verdict": verdict.sentence})
    return comparison


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


def _told(drawn: Sequence[Drawn], pipeline: Pipeline, cell: Variant) -> list[Drawn]:
    """The conditions as this cell may be told them: a label only to what takes one."""
    if pipeline.has_classes or uses_classifier(cell.sampling):
        return list(drawn)
    return [replace(each, request=replace(each.request, class_label=None)) for each in drawn]


def _row_titles(drawn: Sequence[Drawn], data: ImageData) -> list[str]:
    titles = []
    for each in drawn:
        label = each.request.class_label
        titles.append(each.request.prompt or ("" if label is None else data.class_names[label]))
    return titles
