"""Evaluate a model against a data set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ldm.data.protocol import ImageData
from ldm.errors import UserError
from ldm.evaluation.conditions import Drawn, draw_conditions, uses_classifier
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.floor import floor_of_data
from ldm.evaluation.frechet import Gaussian
from ldm.evaluation.instruments import Instruments, prepare_instruments
from ldm.evaluation.judge import Score
from ldm.evaluation.kept_features import chosen_indices, features_of
from ldm.evaluation.likelihood import LikelihoodConfig, refuse_guidance, with_likelihood
from ldm.evaluation.manifest import cautions, count_of_reference, describe
from ldm.evaluation.metrics import Samples, check_numbers, figures_of
from ldm.evaluation.records import EvaluationResult, Figure
from ldm.evaluation.references import opened_reference
from ldm.pipeline import Pipeline, SamplingConfig
from ldm.progress import progress


@dataclass(frozen=True)
class Measurement:
    """Figures of one set of samples, their cost, and the first few of them."""

    figures: tuple[Figure, ...]
    evaluations_per_image: float
    seconds_per_image: float
    images: Tensor  # (kept, 3, H, W) in [-1, 1], on the CPU


def evaluate_model(
    pipeline: Pipeline,
    data: ImageData,
    sampling: SamplingConfig | None = None,
    config: EvaluationConfig | None = None,
    *,
    instruments: Instruments | None = None,
    train_data: ImageData | None = None,
    other_data: ImageData | None = None,
    likelihood: LikelihoodConfig | None = None,
) -> EvaluationResult:
    """Sample under conditions drawn from `data` and compare with its images; measure their likelihood if asked to.

    `instruments` default to those trained on `train_data`, which defaults to `data`; they are trained after the model
    was found to be able to do what is asked, so a refusal costs nothing. The floor of the figures is that of the images
    of `other_data`, which defaults to `train_data` where that is not `data`.
    """
    sampling, config = sampling or SamplingConfig(), config or EvaluationConfig()
    if "bits_per_code" in config.metrics:
        raise UserError("--metrics bits_per_code: for the output of `ldm train prior`; this model draws no codes")
    if config.likelihood_alone:
        refuse_guidance(sampling)
        return with_likelihood(None, pipeline, data, config, likelihood)
    target = uses_classifier(sampling)
    requests = [
        drawn.request for drawn in draw_conditions(pipeline, data, config.num_images, config.seed, classifier=target)
    ]
    pipeline.check(requests, sampling)  # refuse before any work
    opened_reference(config, data)
    check_numbers(config, config.num_images, count_of_reference(data, config))
    instruments = instruments or prepare_instruments(train_data or data, config, device=pipeline.device)
    drawn = draw_conditions(pipeline, data, config.num_images, config.seed, classifier=target, judge=instruments.judge)
    reference = reference_features(data, instruments, config)
    found = measure(pipeline, drawn, sampling, config, instruments, reference)
    other = train_data if other_data is None else other_data
    floor = floor_of_data(other, data, reference, config, instruments, captions=pipeline.has_text)
    folder = getattr(pipeline, "folder", None)
    manifest = describe(data, config, instruments, folder) | {"sampling": asdict(sampling), "floor": floor.facts}
    result = EvaluationResult(
        found.figures,
        manifest,
        found.evaluations_per_image,
        found.seconds_per_image,
        cautions(config.num_images, manifest["num_reference"], instruments),
        floor.figures,
    )
    return with_likelihood(result, pipeline, data, config, likelihood) if "bits_per_dim" in config.metrics else result


def measure(
    pipeline: Pipeline,
    drawn: Sequence[Drawn],
    sampling: SamplingConfig,
    config: EvaluationConfig,
    instruments: Instruments,
    reference: Tensor | Gaussian | None,
    *,
    keep: int = 0,
    label: str = "sampling",
) -> Measurement:
    """Sample under the drawn conditions and measure; images stay on the device but for the first `keep`."""
    batches = pipeline.generate(
        [each.request for each in drawn], sampling, seed=config.seed, batch_size=config.batch_size
    )
    features, kept, scores, seconds, done = [], [], dict[str, Score](), 0.0, 0
    judge, opinions = instruments.judge, []
    for _ in progress(range(-(-len(drawn) // config.batch_size)), label):
        start = time.perf_counter()
        images = next(batches)  # (b, 3, H, W)
        _wait(images.device)
        seconds += time.perf_counter() - start
        if instruments.extractor is not None:
            features.append(instruments.extractor(images))
        if judge is not None:
            asked = [each.asked for each in drawn[done : done + len(images)]]
            for name, score in judge.score(images, asked).items():
                scores[name] = scores.get(name, Score()) + score
            if judge.class_head and "inception_score" in config.metrics:
                opinions.append(judge.probabilities(images)[judge.class_head])
        if done < keep:
            kept.append(images[: keep - done].cpu())
        done += len(images)
    for _ in batches:
        raise RuntimeError("more batches than conditions")
    figures: tuple[Figure, ...] = ()
    if instruments.extractor is not None and reference is not None:
        samples = Samples(
            reference,
            torch.cat(features),
            instruments.extractor,
            [(each.request.prompt, each.request.class_label) for each in drawn],
            torch.cat(opinions) if opinions else None,
            judge.name if judge is not None else "",
        )
        figures = figures_of(samples, config)
    figures += tuple(
        Figure(f"accuracy/{name}", f"accuracy[{name}]", score.share, score.standard_error, higher_is_better=True)
        for name, score in scores.items()
    )
    images = torch.cat(kept) if kept else torch.empty(0)
    return Measurement(figures, pipeline.evaluations / len(drawn), seconds / len(drawn), images)


def reference_features(data: ImageData, instruments: Instruments, config: EvaluationConfig) -> Tensor | Gaussian | None:
    """Features (N, D) of the real images, from the --reference, the cache or computed; None where none are needed."""
    extractor = instruments.extractor
    if extractor is None:
        return None
    if (file := opened_reference(config, data)) is not None:
        file.check_extractor(extractor)
        return file.real.to(getattr(extractor, "device", "cpu"))
    indices = chosen_indices(len(data), config.num_reference, config.seed)
    return features_of(extractor, data, indices, batch_size=config.batch_size, label="features of the data")


def _wait(device: torch.device) -> None:
    """Let the device finish, so that its time is counted where it is spent."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
