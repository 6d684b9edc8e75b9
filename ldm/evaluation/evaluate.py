"""Evaluate a model against a data set, or one folder of images against another."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.protocol import ImageData
from ldm.errors import UserError
from ldm.evaluation.conditions import draw_conditions, uses_classifier
from ldm.evaluation.config import OF_FOLDERS, EvaluationConfig
from ldm.evaluation.features import Extractor, extract, inception_extractor, trained_extractor
from ldm.evaluation.folder_images import FolderImages
from ldm.evaluation.judge import trained_judge
from ldm.evaluation.likelihood import LikelihoodConfig, refuse_guidance, with_likelihood
from ldm.evaluation.measure import Instruments, measure
from ldm.evaluation.metrics import Samples, check_numbers, figures_of
from ldm.evaluation.records import EvaluationResult
from ldm.pipeline import Pipeline, SamplingConfig
from ldm.processes import ALONE, Processes
from ldm.progress import progress
from ldm.sampling import caveats

_SMALL = 10_000  # below so many images FID's bias is larger than most differences worth telling


def prepare_instruments(
    data: ImageData, config: EvaluationConfig, *, device: torch.device | str = "cpu"
) -> Instruments:
    """Inception or the network trained on `data`, and the judge; trained now unless they are in the user's cache."""
    extractor: Extractor | None = None
    if config.distances:
        if config.extractor != "trained":
            extractor = inception_extractor(config.inception_weights, device=device, download=config.download_inception)
            if extractor is None and config.extractor == "inception":
                raise UserError(
                    "--extractor inception: its weights are not here; "
                    "give --inception-weights FILE, or --download-inception"
                )
        extractor = extractor or trained_extractor(data, device=device)
    known = bool(data.attribute_names or data.class_names)
    judge = trained_judge(data, device=device) if config.judge and known else None
    if extractor is None and judge is None:
        raise UserError("nothing to measure: no metric is asked for, and there is no judge for this data")
    return Instruments(extractor, judge)


def evaluate_model(
    pipeline: Pipeline,
    data: ImageData,
    sampling: SamplingConfig | None = None,
    config: EvaluationConfig | None = None,
    *,
    instruments: Instruments | None = None,
    train_data: ImageData | None = None,
    likelihood: LikelihoodConfig | None = None,
    processes: Processes = ALONE,
) -> EvaluationResult:
    """Sample under conditions drawn from `data` and compare with its images; measure their likelihood if asked to.

    `instruments` default to those trained on `train_data`, which defaults to `data`; they are trained after the model
    was found to be able to do what is asked, so a refusal costs nothing. Several `processes` share the samples and the
    reference; likelihoods are the first one's alone.
    """
    sampling, config = sampling or SamplingConfig(), config or EvaluationConfig()
    if "bits_per_code" in config.metrics:
        raise UserError("--metrics bits_per_code: for the output of `ldm train prior`; this model draws no codes")
    if config.likelihood_alone:
        refuse_guidance(sampling)
        return processes.from_first(lambda: with_likelihood(None, pipeline, data, config, likelihood))
    target = uses_classifier(sampling)

    def check() -> None:  # refuse before any work
        drawn = draw_conditions(pipeline, data, config.num_images, config.seed, classifier=target)
        pipeline.check([each.request for each in drawn], sampling)
        check_numbers(config, config.num_images, min(config.num_reference, len(data)))

    processes.agreed(check)
    processes.advise(config.num_images, config.batch_size)
    instruments = instruments or processes.first_then_others(
        lambda: prepare_instruments(train_data or data, config, device=pipeline.device)
    )
    drawn = draw_conditions(pipeline, data, config.num_images, config.seed, classifier=target, judge=instruments.judge)
    reference = reference_features(data, instruments, config, processes)
    found = measure(pipeline, drawn, sampling, config, instruments, reference, processes=processes)
    manifest = describe(data, config, instruments) | {"sampling": asdict(sampling), "caveats": caveats(sampling)}
    result = EvaluationResult(
        found.figures,
        manifest,
        found.evaluations_per_image,
        found.seconds_per_image,
        (*cautions(config.num_images, manifest["num_reference"], instruments), *caveats(sampling)),
    )
    if "bits_per_dim" not in config.metrics:
        return result
    return processes.from_first(lambda: with_likelihood(result, pipeline, data, config, likelihood))


def evaluate_folders(
    real: str | Path,
    fake: str | Path,
    config: EvaluationConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    instruments: Instruments | None = None,
) -> EvaluationResult:
    """Distances between all images of two folders, each image in its own size.

    Without Inception's weights the features are trained on the folder `real`.
    """
    config = config or EvaluationConfig()
    foreign = [metric for metric in config.metrics if metric not in OF_FOLDERS]
    if foreign or not config.metrics:
        asked = f"{foreign[0]} needs a model" if foreign else "none is asked for"
        raise UserError(f"--metrics: two folders can only be compared by {', '.join(OF_FOLDERS)}, and {asked}")
    folders = FolderImages(real), FolderImages(fake)
    check_numbers(config, len(folders[1]), len(folders[0]))
    if instruments is None or instruments.extractor is None:
        instruments = prepare_instruments(folders[0], config, device=device)
    extractor = instruments.extractor
    assert extractor is not None  # a metric is asked for
    sizes: tuple[Counter[tuple[int, int]], ...] = (Counter(), Counter())
    a, b = (
        extract(extractor, folder.images(config.batch_size, f"features of {name}", seen))
        for folder, name, seen in zip(folders, ("real", "fake"), sizes, strict=True)
    )
    manifest = _extractor_facts(instruments) | {
        "real": folders[0].name,
        "fake": folders[1].name,
        "num_reference": len(a),
        "num_images": len(b),
        "sizes": [{f"{w}x{h}": count for (h, w), count in seen.most_common(8)} for seen in sizes],
        "seed": config.seed,
    }
    warnings = list(cautions(len(b), len(a), instruments))
    if set(sizes[0]) != set(sizes[1]):
        warnings.append(
            "the folders hold images of different sizes; each was resized by itself, which the distance sees"
        )
    return EvaluationResult(figures_of(Samples(a, b, extractor), config), manifest, warnings=tuple(warnings))


def reference_features(
    data: ImageData, instruments: Instruments, config: EvaluationConfig, processes: Processes = ALONE
) -> Tensor | None:
    """Features (N, D) of the real images, read batch by batch; None where no distance is asked for.

    Of several processes the first has them all, the others their own.
    """
    extractor = instruments.extractor
    if extractor is None:
        return None
    indices = np.arange(len(data))
    if len(data) > config.num_reference:
        indices = np.sort(
            np.random.Generator(np.random.PCG64(config.seed)).permutation(len(data))[: config.num_reference]
        )
    places = processes.places(len(indices), config.batch_size)
    found = [
        (place, extractor(torch.stack([data[int(i)].image for i in indices[place : place + config.batch_size]])))
        for place in (progress(places, "features of the data") if processes.leads else places)
    ]
    if processes.count > 1:
        everyone = processes.gather([(place, features.cpu()) for place, features in found])
        device = found[0][1].device if found else torch.device("cpu")
        parts = [(place, features.to(device)) for those in everyone for place, features in those]
        found = sorted(parts, key=lambda part: part[0])
    return torch.cat([features for _, features in found]) if found else torch.empty(0)


def describe(data: ImageData, config: EvaluationConfig, instruments: Instruments) -> dict[str, Any]:
    """The manifest, but for the sampler: what the figures hold for."""
    balanced = f"balanced over {len(data.class_names)} classes" if data.class_names else "as drawn from the data"
    return _extractor_facts(instruments) | {
        "data": data.name,
        "split": data.split,
        "data_fingerprint": data.fingerprint,
        "image_size": data.image_size,
        "num_images": config.num_images,
        "num_reference": min(config.num_reference, len(data)),
        "conditions": balanced,
        "seed": config.seed,
        "weights": "as published in the model folder (EMA)",
    }


def cautions(num_images: int, num_reference: int, instruments: Instruments) -> tuple[str, ...]:
    """What to be careful about when the figures are quoted."""
    found = []
    extractor, judge = instruments.extractor, instruments.judge
    fewest = min(num_images, num_reference)
    if extractor is not None and fewest < _SMALL:
        found.append(f"N = {fewest}: the Frechet distance is biased upwards; compare only figures of equal N")
    if extractor is not None and fewest <= extractor.dim:
        found.append(
            f"N = {fewest} is not above the {extractor.dim} feature dimensions: the covariance is rank-deficient"
        )
    if extractor is not None and extractor.name != "inception":
        found.append(f"features are {extractor.name}, not Inception: comparable only under this very name")
    for name, accuracy in judge.accuracy.items() if judge is not None else ():
        if not accuracy >= 0.95:
            found.append(f"the judge of {name} is right in only {100 * accuracy:.1f} % of held-out real images")
    return tuple(found)


def _extractor_facts(instruments: Instruments) -> dict[str, Any]:
    extractor, judge = instruments.extractor, instruments.judge
    facts: dict[str, Any] = {}
    if extractor is not None:
        facts |= {"extractor": extractor.name, "dim": extractor.dim, "preprocessing": extractor.preprocessing}
    if judge is not None:
        facts |= {
            "judge": judge.name,
            "judge_accuracy": dict(judge.accuracy),
            "judge_held_out": judge.facts.held_out,
        }
    return facts
