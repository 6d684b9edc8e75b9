"""The floor of each figure: what real images that are not the reference have in the place of samples.

A model that draws from the law of the data itself would have these figures, but for chance; so they are measured as its
own are, by the same extractor, against the same reference, on as many images where there are so many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import balanced_indices
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators
from ldm.evaluation.features.feature_cache import features_of
from ldm.evaluation.metrics.figures import Samples, check_numbers, figures_of
from ldm.evaluation.metrics.frechet import Gaussian
from ldm.evaluation.records import MetricValue, figures_from_json, finite
from ldm.runtime.errors import UserError


@dataclass(frozen=True)
class RealBaseline:
    """Figures of real images, and which they are."""

    figures: tuple[MetricValue, ...] = ()
    provenance: dict[str, Any] | None = None  # None: there is no floor

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return finite({"figures": [asdict(figure) for figure in self.figures], "facts": self.provenance})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RealBaseline:
        """What `to_json` gave."""
        return cls(figures_from_json(value["figures"]), value["facts"])


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
    if judge is not None and judge.class_head and "inception_score" in config.metrics:
        parts = [indices[start : start + config.batch_size] for start in range(0, len(indices), config.batch_size)]
        found = [judge.probabilities(torch.stack([other[i].image for i in part])) for part in parts]
        class_probs = torch.cat([each[judge.class_head] for each in found])
    texts, clip = None, evaluators.clip
    if clip is not None and captions and other.has_captions:
        seen = features_of(clip.extractor, other, indices, batch_size=config.batch_size, label="CLIP of real images")
        texts = clip.of_features(seen, [other.captions(i)[0] for i in indices])
    names = judge.name if judge is not None else "", texts, clip.name if clip is not None else ""
    samples = Samples(real, fake, extractor, groups, class_probs, *names)
    provenance = {"images": f"real, of {other.name} ({other.split})", "data_fingerprint": other.fingerprint}
    return _measured(samples, config, provenance | {"num_images": len(fake)})


def baseline_of_features(
    others: Tensor, real: Tensor | Gaussian, config: EvaluationConfig, evaluators: Evaluators, count: int, name: str
) -> RealBaseline:
    """Of at most `count` of the features (M, D) of images that are said to be `name`."""
    if not config.floor or evaluators.extractor is None or len(others) < 2:
        return RealBaseline()
    chosen = torch.randperm(len(others), generator=torch.Generator().manual_seed(config.seed))[:count]
    samples = Samples(real, others[chosen.to(others.device)], evaluators.extractor)
    return _measured(samples, config, {"images": name, "num_images": len(samples.fake)})


def baseline_of_halves(real: Tensor, config: EvaluationConfig, evaluators: Evaluators, count: int) -> RealBaseline:
    """Where there are no other images: at most half of the real ones against the rest of them."""
    count = min(count, len(real) // 2)
    if count < 2:
        return RealBaseline()
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(config.seed)).to(real.device)
    found = baseline_of_features(real[order[:count]], real[order[count:]], config, evaluators, count, "")
    if found.provenance is None:
        return found
    name = f"real, {count} against the other {len(real) - count}"
    return replace(found, provenance={**found.provenance, "images": name, "num_reference": len(real) - count})


def _measured(samples: Samples, config: EvaluationConfig, provenance: dict[str, Any]) -> RealBaseline:
    """All figures that these images can have."""
    count = len(samples.real) if isinstance(samples.real, Tensor) else len(samples.fake)
    measurable: list[str] = []
    for metric in config.distances:
        try:
            check_numbers(replace(config, metrics=(metric,)), len(samples.fake), count)
            if metric in ("diversity", "inception_score", "clip_score"):  # needs more than features
                figures_of(samples, replace(config, metrics=(metric,), bootstrap=0))
            measurable.append(metric)
        except UserError:
            continue
    return RealBaseline(figures_of(samples, replace(config, metrics=tuple(measurable), bootstrap=0)), provenance)


def baseline_line(provenance: Mapping[str, Any]) -> str:
    """What the floor's facts say, as one line."""
    reference = f", {provenance['num_reference']} as reference" if "num_reference" in provenance else ""
    return f"floor: the same of {provenance['num_images']} images: {provenance['images']}{reference}"
