"""What metrics are measured by: a feature extractor, a judge of classes and attributes, CLIP."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldm.data.dataset import ImageData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.extractors import Extractor, inception_extractor, trained_extractor
from ldm.evaluation.features.judge import Judge, trained_judge
from ldm.evaluation.features.pretrained import ClipScorer, PretrainedExtractor, pretrained_extractor
from ldm.evaluation.references import opened_reference
from ldm.evaluation.registry import OF_SAMPLES
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

_NOT_PRETRAINED = ("auto", "inception", "trained")


@dataclass(frozen=True)
class Evaluators:
    """A feature extractor, a judge where the data set has attributes or labels, CLIP; None where not needed."""

    extractor: Extractor | None
    judge: Judge | None
    clip: ClipScorer | None = None


def prepare_evaluators(data: ImageData, config: EvaluationConfig, *, device: torch.device | str = "auto") -> Evaluators:
    """The extractor of the settings and the judge of `data`; trained now unless they are in the user's cache.

    With a `reference` the extractor is that of the file; `UserError` where it cannot be, before any training.
    """
    needs = config.needs
    own_clip = "captions" in needs and (bool(config.clip_model) or config.extractor in _NOT_PRETRAINED)
    clip = _clip(config, None, device) if own_clip else None  # before any training: it may not be there
    extractor = prepare_extractor(data, config, device=device) if needs & OF_SAMPLES else None
    if "captions" in needs and clip is None:
        clip = _clip(config, extractor, device)
    judge = prepare_judge(data, config, device)
    if extractor is None and judge is None:
        raise UserError("nothing to measure: no metric is named, and there is no judge for this data")
    return Evaluators(extractor, judge, clip)


def prepare_judge(data: ImageData, config: EvaluationConfig, device: torch.device | str = "auto") -> Judge | None:
    """The judge of `data`; None for data without attributes and labels, or where the settings leave it out."""
    has_labels = bool(data.attribute_names or data.class_names)
    return trained_judge(data, device=device) if config.judge and has_labels else None


def _clip(config: EvaluationConfig, extractor: Extractor | None, device: torch.device | str) -> ClipScorer:
    """The CLIP of clip_score; that of the features where no other is named."""
    if not config.clip_model and isinstance(extractor, PretrainedExtractor) and extractor.kind == "clip":
        return ClipScorer(extractor)
    setting = "`clip_model`" if config.clip_model else "`metrics` clip_score: `clip_model`"
    name, download = config.clip_model or "clip", config.download_extractor
    return ClipScorer(pretrained_extractor(name, setting, device=device, download=download))


def prepare_extractor(
    data: ImageData | None, config: EvaluationConfig, *, device: torch.device | str = "auto"
) -> Extractor:
    """The extractor of the settings: that of their `reference`, Inception, or the network trained on `data`."""
    file = opened_reference(config)
    needed = "" if file is None else file.metadata.extractor
    extractor: Extractor | None = None
    if file is not None and config.extractor in ("auto", "trained"):
        extractor = file.extractor(device)
    if extractor is None and config.extractor in ("auto", "inception"):
        extractor = inception_extractor(config.inception_weights, device=device, download=config.download_inception)
        if extractor is None and "inception" in (config.extractor, needed):
            what = "`extractor` inception" if config.extractor == "inception" else f"`reference` {config.reference}"
            remedy = "give `inception_weights` FILE, or `download_inception`"
            raise UserError(f"{what}: Inception's weights are not here", remedy=remedy)
    if config.extractor not in _NOT_PRETRAINED:
        download = config.download_extractor
        extractor = pretrained_extractor(config.extractor, "`extractor`", device=device, download=download)
    if extractor is None:
        if file is not None:
            problem = f"made by the extractor {printable(needed)}, give it by `extractor`"
            raise UserError(problem, setting="reference", value=config.reference)
        if data is None:
            raise UserError("`extractor` trained: needs images to train on, or a `reference` that it made")
        extractor = trained_extractor(data, device=device)
    if file is not None:
        file.check_extractor(extractor)
    return extractor
