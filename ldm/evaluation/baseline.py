"""The real-data baseline of each figure: what real images that are not the reference have in the place of samples.

A model that draws from the distribution of the data itself would have these figures, but for chance; so they are
measured as its own are, by the same extractor, against the same reference, on as many images where there are so many.
In JSON, files and flags it is called the floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import balanced_indices
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators
from ldm.evaluation.features.appearance import Appearance
from ldm.evaluation.features.feature_cache import features_of
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.metrics.base import MetricContext, Samples
from ldm.evaluation.records import MetricValue, StoredFigure, figures_from_json
from ldm.evaluation.registry import metrics
from ldm.runtime.errors import UserError
from ldm.runtime.schema import convert, finite
from ldm.runtime.text import counted


@dataclass(frozen=True)
class RealBaseline:
    """Figures of real images, and which they are."""

    figures: tuple[MetricValue, ...] = ()
    provenance: dict[str, Any] | None = None  # None: there is no baseline

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return finite({"figures": [asdict(figure) for figure in self.figures], "facts": self.provenance})

    @classmethod
    def from_json(cls, value: object) -> RealBaseline:
        """What `to_json` gave; `ValueError` names the place of what it did not."""
        stored = convert(value, StoredBaseline)
        return cls(figures_from_json(stored["figures"]), stored.get("facts"))


class StoredBaseline(TypedDict):
    """A `RealBaseline` in JSON."""

    figures: tuple[StoredFigure, ...]
    facts: NotRequired[dict[str, Any] | None]


def baseline_of_data(
    other: ImageData | None,
    data: ImageData,
    real: Tensor | Gaussian | None,
    config: EvaluationConfig,
    evaluators: Evaluators,
    *,
    captions: bool = False,
) -> RealBaseline:
    """Images of `other`, the split that the reference `real` of `data` is not of, drawn as conditions are drawn.

    With `captions`, samples of one condition are those of one caption, else of one class.
    """
    extractor, judge = evaluators.extractor, evaluators.judge
    if not config.floor or extractor is None or real is None or other is None or other.fingerprint == data.fingerprint:
        return RealBaseline()
    count = min(config.num_images, len(other))
    indices = list(dict.fromkeys(balanced_indices(other, count, config.seed)))
    fake = features_of(extractor, other, indices, batch_size=config.batch_size, label="features of other real images")
    groups = [(other.captions(i)[0] if captions and other.has_captions else "", other.label(i)) for i in indices]
    class_probs = None
    if judge is not None and judge.class_head and "class_probs" in config.needs:
        parts = [indices[start : start + config.batch_size] for start in range(0, len(indices), config.batch_size)]
        probs = [judge.probabilities(torch.stack([other[i].image for i in part]))[judge.class_head] for part in parts]
        class_probs = torch.cat(probs)
    texts, clip = None, evaluators.clip
    if clip is not None and captions and other.has_captions:
        size, label = config.batch_size, "CLIP of real images"
        embeddings = features_of(clip.extractor, other, indices, batch_size=size, label=label)
        texts = clip.of_features(embeddings, [other.captions(i)[0] for i in indices])
    judge_name, clip_name = judge.name if judge is not None else "", clip.name if clip is not None else ""
    appearance = None
    if "pixels" in config.needs:
        looks, label = Appearance(extractor.device), "appearance of real images"
        appearance = features_of(looks, other, indices, batch_size=config.batch_size, label=label)
    samples = Samples(real, fake, extractor, groups, class_probs, judge_name, texts, clip_name, appearance)
    provenance = {"images": f"real, of {other.name} ({other.split})", "data_fingerprint": other.fingerprint}
    return _baseline_of(samples, config, provenance | {"num_images": len(fake)})


def baseline_of_features(
    others: Tensor,
    real: Tensor | Gaussian,
    config: EvaluationConfig,
    evaluators: Evaluators,
    count: int,
    name: str,
    appearance: Tensor | None = None,
) -> RealBaseline:
    """Of at most `count` of the features (M, D), and the appearance (M, 4), of images described by `name`."""
    if not config.floor or evaluators.extractor is None or len(others) < 2:
        return RealBaseline()
    chosen = torch.randperm(len(others), generator=torch.Generator().manual_seed(config.seed))[:count]
    looks = None if appearance is None else appearance[chosen.to(appearance.device)]
    samples = Samples(real, others[chosen.to(others.device)], evaluators.extractor, appearance=looks)
    return _baseline_of(samples, config, {"images": name, "num_images": len(samples.fake)})


def baseline_of_halves(
    real: Tensor, config: EvaluationConfig, evaluators: Evaluators, count: int, appearance: Tensor | None = None
) -> RealBaseline:
    """Where there are no other images: at most half of the real ones against the rest of them."""
    count = min(count, len(real) // 2)
    if count < 2:
        return RealBaseline()
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(config.seed)).to(real.device)
    looks = None if appearance is None else appearance[order[:count].to(appearance.device)]
    baseline = baseline_of_features(real[order[:count]], real[order[count:]], config, evaluators, count, "", looks)
    if baseline.provenance is None:
        return baseline
    name = f"real, {count} against the other {len(real) - count}"
    return replace(baseline, provenance={**baseline.provenance, "images": name, "num_reference": len(real) - count})


def _baseline_of(samples: Samples, config: EvaluationConfig, provenance: dict[str, Any]) -> RealBaseline:
    """All figures that these images can have."""
    count = len(samples.real) if isinstance(samples.real, Tensor) else len(samples.fake)
    config = replace(config, bootstrap=0)
    figures = []
    for name in config.sample_metrics:
        metric = metrics.get(name)
        try:
            metric.check(MetricContext(config, len(samples.fake), count))
            figures.append(metric.measure(samples, config))
        except UserError:
            continue
    return RealBaseline(tuple(figures), provenance)


def baseline_line(provenance: Mapping[str, Any]) -> str:
    """The provenance of a baseline, as one line."""
    reference = f", {provenance['num_reference']} as reference" if "num_reference" in provenance else ""
    return f"floor: the same of {counted(provenance['num_images'], 'image')}: {provenance['images']}{reference}"
