"""What measures: features for the distances, and a judge where the data set tells what is in its images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldm.data.dataset import ImageData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.extractors import Extractor, inception_extractor, trained_extractor
from ldm.evaluation.features.judge import Judge, trained_judge
from ldm.evaluation.features.pretrained import ClipScorer, PretrainedExtractor, pretrained_extractor
from ldm.evaluation.references import opened_reference
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

_NOT_PRETRAINED = ("auto", "inception", "trained")


@dataclass(frozen=True)
class Evaluators:
    """What measures: features for the distances, and a judge where the data set tells what is in its images."""

    extractor: Extractor | None  # None: no distance is asked for
    judge: Judge | None
    clip: ClipScorer | None = None  # None: clip_score is not asked for


def prepare_evaluators(data: ImageData, config: EvaluationConfig, *, device: torch.device | str = "cpu") -> Evaluators:
    """The extractor that is asked for and the judge of `data`; trained now unless they are in the user's cache.

    With a `reference` the extractor is that of the file; `UserError` where it cannot be, before any training.
    """
    apart = "clip_score" in config.metrics and (bool(config.clip_model) or config.extractor in _NOT_PRETRAINED)
    clip = _clip(config, None, device) if apart else None  # before any training: it may not be there
    extractor = prepare_extractor(data, config, device=device) if config.distances or config.near else None
    if "clip_score" in config.metrics and clip is None:
        clip = _clip(config, extractor, device)
    known = bool(data.attribute_names or data.class_names)
    judge = trained_judge(data, device=device) if config.judge and known else None
    if extractor is None and judge is None:
        raise UserError("nothing to measure: no metric is asked for, and there is no judge for this data")
    return Evaluators(extractor, judge, clip)


def _clip(config: EvaluationConfig, extractor: Extractor | None, device: torch.device | str) -> ClipScorer:
    """The CLIP of clip_score; that of the features where no other is named."""
    if not config.clip_model and isinstance(extractor, PretrainedExtractor) and extractor.kind == "clip":
        return ClipScorer(extractor)
    flag = "`clip_model`" if config.clip_model else "`metrics` clip_score: `clip_model`"
    name, download = config.clip_model or "clip", config.download_extractor
    return ClipScorer(pretrained_extractor(name, flag, device=device, download=download))


def prepare_extractor(
    data: ImageData | None, config: EvaluationConfig, *, device: torch.device | str = "cpu"
) -> Extractor:
    """The extractor of the settings: that of their `reference`, Inception, or the network trained on `data`."""
    file = opened_reference(config)
    needed = "" if file is None else file.metadata.extractor
    found: Extractor | None = None
    if file is not None and config.extractor in ("auto", "trained"):
        found = file.extractor(device)
    if found is None and config.extractor in ("auto", "inception"):
        found = inception_extractor(config.inception_weights, device=device, download=config.download_inception)
        if found is None and "inception" in (config.extractor, needed):
            what = "`extractor` inception" if config.extractor == "inception" else f"`reference` {config.reference}"
            raise UserError(
                f"{what}: Inception's weights are not here",
                remedy="give `inception_weights` FILE, or `download_inception`",
            )
    if config.extractor not in _NOT_PRETRAINED:
        found = pretrained_extractor(config.extractor, "`extractor`", device=device, download=config.download_extractor)
    if found is None:
        if file is not None:
            raise UserError(
                f"made by the extractor {printable(needed)}",
                remedy="give it by `extractor`",
                setting="reference",
                value=config.reference,
            )
        if data is None:
            raise UserError(
                "needs images to train on, or a `reference` that it made", setting="extractor", value="trained"
            )
        found = trained_extractor(data, device=device)
    if file is not None:
        file.check_extractor(found)
    return found
