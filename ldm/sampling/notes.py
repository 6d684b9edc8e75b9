"""What of the settings of a sampling has no effect: words, classes and guidances; a line each, for the user to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ldm.conditioning.conditioner import Conditioner
from ldm.runtime.text import printable
from ldm.sampling.config import Request
from ldm.sampling.plan import SamplingPlan
from samplers import ScaledDifferenceGuidance

_LISTED = 8  # words or classes that are named
_LOOKED_AT = 2000  # texts, so that an evaluation of many takes a second


def condition_notes(requests: Sequence[Request], conditioner: Conditioner) -> list[str]:
    """Words that are cut off or that the training did not have, and classes without training images."""
    notes: list[str] = []
    text = conditioner.text
    if text is not None:
        prompts = [r.prompt for r in requests] + [r.toward_prompt for r in requests if r.toward_prompt]
        for setting, texts in (("prompt", prompts), ("negative_prompt", [r.negative_prompt or "" for r in requests])):
            distinct = list(dict.fromkeys(filter(None, texts)))[:_LOOKED_AT]
            limit = f"beyond the {text.max_tokens} tokens of this model's texts, without effect"
            notes += _about(setting, distinct, text.cut_words, limit)
            notes += _about(setting, distinct, text.unknown_words, "unknown to the tokenizer")
            if (words := conditioner.words) is not None:
                few = f"not among the {len(words.words):,} most frequent words of the training captions"
                absent = few if words.left_out else "in no caption of the training"
                notes += _about(setting, distinct, words.unknown, absent)
    if conditioner.untrained:
        named = {label for r in requests for label in (r.class_label, r.negative_class) if label is not None}
        if untrained := sorted(named & conditioner.untrained):
            listed = _listed(conditioner.class_names[label] for label in untrained)
            notes.append(f"`class_label`: the training had no image of {listed}")
    return notes


def guidance_notes(requests: Sequence[Request], plan: SamplingPlan, conditioner: Conditioner) -> list[str]:
    """Guidances that cannot do anything under these conditions, or at these steps."""
    notes, levels = [], plan.levels[:-1]
    alike = all(is_negative(request, conditioner) for request in requests)
    for name, guidance in zip(plan.guidance_names, plan.guidances, strict=False):
        differ = isinstance(guidance, ScaledDifferenceGuidance) and guidance.against == "uncond"
        if differ and guidance.needs and alike:
            notes.append(f"{name} does nothing: {_why_alike(requests, conditioner)}, so its two predictions are one")
        elif guidance.needs and levels and not any(guidance.branches(level) for level in levels):
            ends = f"{levels[-1].noise_ratio:.3g} to {levels[0].noise_ratio:.3g}"
            notes.append(f"{name} does nothing: at none of the steps, sigma / alpha {ends}, does it act")
    return notes


def is_negative(request: Request, conditioner: Conditioner) -> bool:
    """Whether the condition of a sample is the one that guidance leads away from, by default the null condition."""
    text = not conditioner.has_text or (request.prompt == (request.negative_prompt or "") and not request.toward_prompt)
    return text and (not conditioner.num_classes or request.class_label == request.negative_class)


def _why_alike(requests: Sequence[Request], conditioner: Conditioner) -> str:
    if any(request.negative_prompt or request.negative_class is not None for request in requests):
        return "the samples have the same condition as negative"
    conditions = ["prompt"] * conditioner.has_text + ["class"] * bool(conditioner.num_classes)
    return f"the samples have no {' and no '.join(conditions)}"


def _about(setting: str, texts: Sequence[str], words_of: Callable[[str], Sequence[str]], problem: str) -> list[str]:
    """One note for all texts of a setting: the words of the first, and how many texts have such words."""
    with_words = [words for text in texts if (words := words_of(text))]
    if not with_words:
        return []
    several = "" if len(texts) == 1 else f" ({len(with_words):,} of {len(texts):,} texts have such words)"
    return [f"`{setting}`: {problem}: {_listed(with_words[0])}{several}"]


def _listed(words: Iterable[str]) -> str:
    listed = [printable(word, 40) for word in words]
    return ", ".join(listed[:_LISTED]) + (f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else "")
