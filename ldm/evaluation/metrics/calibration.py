"""How far confidence can be believed: the calibration error of the judge, and of noisy classifiers by noise level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.feature_cache import chosen_indices
from ldm.evaluation.features.judge import Judge, trained_judge
from ldm.evaluation.metrics.class_scores import calibration_error
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.runtime.errors import UserError
from ldm.runtime.progress import progress
from ldm.sampling.pipeline import Pipeline
from samplers import SampleNoise

_MOST = 4096  # images
_TIMES = (0.0, 0.25, 0.5, 0.75)  # of T - 1


def judge_for(data: ImageData, config: EvaluationConfig, pipeline: Pipeline) -> Judge | None:
    """The judge of `data` where nothing else is measured by it; None without calibration or labels."""
    if not config.judge or "calibration" not in config.metrics:
        return None
    return trained_judge(data, device=pipeline.device) if data.attribute_names or data.class_names else None


def with_calibration(
    result: EvaluationResult | None,
    pipeline: Pipeline,
    judge: Judge | None,
    data: ImageData,
    other: ImageData | None,
    config: EvaluationConfig,
) -> EvaluationResult:
    """The calibration's figures after the others, if there are any; of `other` images where `data` were trained on."""
    held_out = other if data.split == "train" and other is not None else data
    figures, facts = calibration_figures(pipeline, judge, held_out, config)
    if result is None:
        named = {"data": held_out.name, "split": held_out.split, "data_fingerprint": held_out.fingerprint}
        return EvaluationResult(figures, named | {"seed": config.seed, "calibration": facts})
    return replace(result, figures=result.figures + figures, manifest={**result.manifest, "calibration": facts})


@torch.no_grad()
def calibration_figures(
    pipeline: Pipeline, judge: Judge | None, data: ImageData, config: EvaluationConfig
) -> tuple[tuple[MetricValue, ...], dict[str, Any]]:
    """Expected calibration errors on real images of `data`, at most 4096, and what they were measured on.

    Of the judge, one a task; of each classifier of the pipeline under the noise of four times of its schedule.
    `UserError` where there is neither, or no image with a label.
    """
    classifiers = pipeline.networks.classifiers if hasattr(pipeline, "networks") else {}
    if judge is None and not classifiers:
        raise UserError(
            "there is neither a judge for this data nor a classifier",
            remedy="leave it out",
            setting="metrics",
            value="calibration",
        )
    indices = chosen_indices(len(data), min(config.num_reference, _MOST), config.seed)
    labels = torch.tensor([data.label(i) for i in indices]) if data.class_names else torch.full((len(indices),), -1)
    class_probs: dict[str, list[Tensor]] = {}
    for start in progress(range(0, len(indices), config.batch_size), "calibration"):
        rows = indices[start : start + config.batch_size]
        images = torch.stack([data[i].image for i in rows])
        found = {} if judge is None else {judge.name + " " + k: v for k, v in judge.probabilities(images).items()}
        for name, guide in classifiers.items():
            latents = pipeline.encode(images)
            noise = SampleNoise(config.seed, rows, "calibration").initial(
                latents.shape[1:], latents.dtype, latents.device
            )
            for part in _TIMES:
                t = part * (guide.schedule.num_train_timesteps - 1)
                level = guide.schedule.level(t)
                times = torch.full((len(rows),), t, device=latents.device)
                logits = guide.network(level.alpha * latents + level.sigma * noise, times)
                found[f"{name} at noise ratio {level.noise_ratio:.3g}"] = logits.float().softmax(1)
        for name, each in found.items():
            class_probs.setdefault(name, []).append(each.cpu())
    figures = []
    for name, parts in class_probs.items():
        judged = judge is not None and name.startswith(f"{judge.name} ")
        right = _answers(judge, name, data, indices) if judge is not None and judged else labels
        known = right >= 0
        if known.any():
            error = calibration_error(torch.cat(parts)[known], right[known])
            short = name.removeprefix(f"{judge.name} ") if judge is not None else name
            figures.append(MetricValue(f"calibration/{short}", f"ECE[{name}]", error))
    if not figures:
        raise UserError(f"{data.name}: no image with a label", setting="metrics", value="calibration")
    return tuple(figures), {"images": len(indices), "split": data.split, "bins": 15}


def _answers(judge: Judge, name: str, data: ImageData, indices: list[int]) -> Tensor:
    """The number of the right answer of the judge's task for each image; -1 where nobody knows."""
    head = name.removeprefix(judge.name + " ")
    if head not in data.attribute_names:
        return torch.tensor([data.label(i) for i in indices])
    number: Mapping[str, int] = {value: k for k, value in enumerate(judge.heads[head])}
    return torch.tensor([number.get(str(data.attributes(i).get(head)), -1) for i in indices])
