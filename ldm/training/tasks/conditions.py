"""The conditions of a training: the conditioner of its data, one caption of each example, condition dropout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.conditioning.conditioner import Conditioner
from ldm.conditioning.config import ConditioningConfig
from ldm.data.dataset import ImageData
from ldm.data.report import DataReport
from ldm.sampling.config import Request
from ldm.training.randomness import StepRandom


class TrainingConditions:
    """The conditioner of a data set, and what it gets in training; `first`: how often the first caption is taken."""

    def __init__(self, config: ConditioningConfig, data: ImageData, first: float, seed: int) -> None:
        captions = [data.captions(index) for index in range(len(data))] if data.has_captions else []
        texts = [text for texts in captions for text in texts] or None
        labels = {data.label(index) for index in range(len(data))}
        untrained = [label for label in range(len(data.class_names)) if label not in labels]
        self.conditioner = Conditioner.build(config, data.class_names, texts, seed=seed, untrained=untrained)
        self.captions = CaptionTokens(self.conditioner, captions, first) if self.conditioner.has_text else None

    def added_to(self, report: DataReport | None) -> DataReport | None:
        """What was read of the data, with what became of the captions."""
        return report if report is None or self.captions is None else report.with_note(self.captions.note)

    def of_batch(
        self, labels: Tensor, keys: list[tuple[int, int]], random: StepRandom
    ) -> tuple[Tensor | None, Tensor | None]:
        """Labels (B,) and token ids (B, L) of a batch, after condition dropout; None where the model uses none."""
        dropped = random.uniform("dropout") < self.conditioner.dropout
        tokens = self.captions.choose(keys).to(labels.device) if self.captions is not None else None
        return self.conditioner.drop(labels if self.conditioner.num_classes else None, tokens, dropped)

    def of_preview(self, data: ImageData, indices: Sequence[int], count: int) -> list[Request]:
        """The first captions of these held-out images, and the classes, in turn."""
        texts = [(data.captions(index) or ("",))[0] for index in indices] if self.conditioner.has_text else [""]
        labels: list[int | None] = [*self.conditioner.trained_classes] or [None]
        return [Request(texts[n % len(texts)], class_label=labels[n % len(labels)]) for n in range(count)]


class CaptionTokens:
    """The token ids of every caption of the data set, made once."""

    def __init__(self, conditioner: Conditioner, captions: list[tuple[str, ...]], first: float) -> None:
        self.first = first
        known: dict[str, int] = {}
        self.rows = [[known.setdefault(text, len(known)) for text in texts or ("",)] for texts in captions]
        self.table = conditioner.tokenize(list(known))  # (distinct captions, L)
        text = conditioner.text
        cut = 0 if text is None else text.count_cut(list(known), self.table)
        what = f"{cut:,} of {len(known):,} different captions are cut" if cut else "no caption is cut"
        self.note = f"tokens: {self.table.shape[1]} a caption (`max_tokens`), {what}"

    def choose(self, keys: list[tuple[int, int]]) -> Tensor:
        """Token ids (B, L): one caption of each example, by its seed."""
        rows = []
        for index, seed in keys:  # the seed's upper bits: its lowest one is the flip
            any_caption = self.rows[index][(seed >> 8) % len(self.rows[index])]
            rows.append(self.rows[index][0] if (seed >> 24) % 1000 < 1000 * self.first else any_caption)
        return self.table[torch.tensor(rows)]
