"""The conditions to sample under, and the attributes that each names: drawn from the data, balanced over classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ldm.data.dataset import ImageData
from ldm.evaluation.features.judge import Judge
from ldm.runtime.errors import UserError
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.image_model import ImageModel


@dataclass(frozen=True, slots=True)
class EvalCondition:
    """One sample's conditions and the attributes that the image should have; {} where none are named."""

    request: Request
    expected_attributes: dict[str, str] = field(default_factory=dict)


def eval_conditions(
    model: ImageModel, data: ImageData, count: int, seed: int, *, classifier: bool = False, judge: Judge | None = None
) -> list[EvalCondition]:
    """Conditions of `count` samples: captions for a text model, labels for a class model, of `data`'s images.

    Images are drawn without replacement (then again from the start), one of each class in turn, so that every stretch
    of the list is balanced; it depends on (data, count, seed) alone. With `classifier`, the label is the classifier's
    target. The prompt is the first caption, which names all attributes of the data set.
    """
    names = set(judge.heads) if judge is not None else set()
    conditions, indices = [], balanced_indices(data, count, seed)
    for index, request in zip(indices, conditions_of(model, data, indices, classifier=classifier), strict=True):
        expected = {}
        if model.has_text and data.attribute_names:
            expected = {name: str(value) for name, value in data.attributes(index).items() if name in names}
        if request.class_label is not None and judge is not None and judge.class_head:
            expected[judge.class_head] = data.class_names[request.class_label]
        conditions.append(EvalCondition(request, expected))
    return conditions


def conditions_of(
    model: ImageModel, data: ImageData, indices: Sequence[int], *, classifier: bool = False
) -> list[Request]:
    """The conditions of these very images: first caption for a text model, label for a class model (-1: the null).

    With `classifier` the label in any case. `UserError` where the data lack the captions or the classes of the model.
    """
    labelled = classifier or model.has_classes
    without = {"captions": model.has_text and not data.has_captions, "class labels": labelled and not data.class_names}
    for name, missing in without.items():
        if missing:
            raise UserError(f"{data.name}: no {name}, which this model needs", remedy="give the data of its training")
    if labelled and tuple(model.class_names) != tuple(data.class_names):
        theirs, ours = (", ".join(names[:5]) for names in (data.class_names, model.class_names))
        raise UserError(f"{data.name}: its classes ({theirs}, ...) are not those of the model ({ours}, ...)")
    labels = [data.label(index) if labelled else -1 for index in indices]
    prompts = [data.captions(index)[0] if model.has_text else "" for index in indices]
    pairs = zip(prompts, labels, strict=True)
    return [Request(prompt=prompt, class_label=label if label >= 0 else None) for prompt, label in pairs]


def uses_classifier(sampling: SamplingConfig) -> bool:
    """Whether the settings guide by the classifier, which then needs a target."""
    terms = [text.split("(")[0].strip() for text in sampling.guidance]
    return bool(sampling.classifier_scale) or "classifier" in terms


def balanced_indices(data: ImageData, count: int, seed: int) -> list[int]:
    """`count` image numbers, one of each class in turn; classes and images in an order drawn by `seed`."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(data)).tolist()
    groups: dict[int, list[int]] = {}
    for index in order:
        groups.setdefault(data.label(index) if data.class_names else -1, []).append(index)
    if len(groups) > 1:
        groups.pop(-1, None)  # images without a label are no condition
    members = list(groups.values())
    return [members[k % len(members)][k // len(members) % len(members[k % len(members)])] for k in range(count)]
