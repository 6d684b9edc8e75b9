"""Class labels and captions -> what the U-Net takes, with the null condition that guidance needs."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioning.condition import Condition
from ldm.conditioning.config import CONDITIONING_FILE, ConditioningConfig
from ldm.conditioning.metadata import read_conditioning
from ldm.conditioning.text_encoder import TextEncoder, embedded_encoder, frozen_encoder, printable_utf8
from ldm.conditioning.words import TrainingWords
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json
from ldm.runtime.text import replace_unprintable, suggest


class Conditioner(nn.Module):
    """Labels (B,) int64 and tokens (B, L) int64 -> `Condition`. Null class: K, the last index; null text: ""."""

    _null_tokens: Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        text: TextEncoder | None,
        *,
        class_conditional: bool,
        dropout: float,
        untrained: Collection[int] = (),
        words: TrainingWords | None = None,
    ) -> None:
        """`untrained`: the classes that the training had no image of; `words`: those of its captions, where known."""
        super().__init__()
        self.class_names = tuple(class_names)
        self.untrained, self.words = frozenset(untrained), words
        self.class_conditional = class_conditional
        self.dropout = dropout
        self.text = text
        null = torch.empty(0, dtype=torch.int64) if text is None else text.tokenize([""])[0]  # (L,)
        self.register_buffer("_null_tokens", null, persistent=False)

    @classmethod
    def build(
        cls,
        config: ConditioningConfig,
        class_names: Sequence[str] = (),
        captions: Iterable[str] | None = None,
        *,
        seed: int = 0,
        untrained: Collection[int] = (),
    ) -> "Conditioner":
        """For a data set; the same class names, captions and seed give the same tokenizer and weights."""
        texts = [caption for caption in captions or () if caption.strip()]
        encoder = config.text_encoder
        if encoder == "auto":
            encoder = "embedded" if texts else None
        if encoder is not None and not texts:
            raise UserError(f"text_encoder {encoder}: expected captions, but the data has none")
        text = None
        if encoder == "embedded":
            text = embedded_encoder(
                texts,
                width=config.text_width,
                layers=config.text_layers,
                heads=config.text_heads,
                vocab_size=config.vocab_size,
                max_tokens=config.max_tokens,
                least_tokens=config.least_tokens,
                seed=seed,
            )
        elif encoder is not None:
            text = frozen_encoder(encoder, texts, config.max_tokens, config.least_tokens)
        by_class = config.class_conditional
        if by_class is None:
            by_class = bool(class_names) and text is None
        if by_class and not class_names:
            raise UserError("class_conditional: expected data with class labels, but it has none")
        if len(set(class_names)) != len(class_names):
            raise UserError("class names: expected distinct names, but one appears twice")
        words = None if text is None else TrainingWords.of(texts)
        dropout = config.condition_dropout
        return cls(class_names, text, class_conditional=by_class, dropout=dropout, untrained=untrained, words=words)

    @property
    def has_text(self) -> bool:
        return self.text is not None

    @property
    def context_dim(self) -> int | None:
        """Width of the text states, the U-Net's `cross_attention_dim`; None without text."""
        return None if self.text is None else self.text.width

    @property
    def num_classes(self) -> int:
        """K, the number of classes that the model is conditioned on; 0 where classes are no condition."""
        return len(self.class_names) if self.class_conditional else 0

    @property
    def trained_classes(self) -> list[int]:
        """The classes that the training had images of, as far as is known."""
        return [label for label in range(self.num_classes) if label not in self.untrained]

    @property
    def null_class(self) -> int | None:
        """The index that stands for no class."""
        return self.num_classes if self.class_conditional else None

    @property
    def num_class_embeds(self) -> int | None:
        """The U-Net's entry of that name: K + 1, or None."""
        return self.num_classes + 1 if self.class_conditional else None

    @property
    def device(self) -> torch.device:
        return self._null_tokens.device

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(B, L) int64 on the CPU; L = 0 without text."""
        if self.text is None:
            return torch.empty(len(texts), 0, dtype=torch.int64)
        return self.text.tokenize(texts)

    def drop(
        self, labels: Tensor | None, tokens: Tensor | None, dropped: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Labels (B,) and tokens (B, L) with the null condition in each sample where `dropped` (B,) is true.

        A negative label means unlabelled, and becomes the null class.
        """
        if labels is not None and self.null_class is not None:
            labels = labels.masked_fill(dropped | (labels < 0), self.null_class)
        if tokens is not None and self.text is not None:
            tokens = torch.where(dropped[:, None], self._null_tokens.to(tokens.device), tokens)
        return labels, tokens

    def forward(self, labels: Tensor | None, tokens: Tensor | None) -> Condition:
        """Encode labels and tokens; what is no condition of this model is ignored, what is one is required."""
        context = class_labels = None
        if self.class_conditional:
            if labels is None:
                raise UserError("conditioner: expected class labels")
            class_labels = labels
        if self.text is not None:
            if tokens is None:
                raise UserError("conditioner: expected tokens")
            context = self.text(tokens)
        return Condition(class_labels, context)

    def null(self, batch: int, device: torch.device | str | None = None) -> Condition:
        """The null condition of `batch` samples."""
        condition = self.encode([None] * batch, [""] * batch)
        return condition if device is None else condition.to(device)

    def encode(self, labels: Sequence[int | str | None] | None, texts: Sequence[str] | None) -> Condition:
        """The condition of each sample, on this module's device; None is the null class, "" the null text.

        `UserError` for a label or a text that this model is not conditioned on. Equal texts are encoded once.
        """
        if labels is not None and texts is not None and len(labels) != len(texts):
            raise UserError(f"conditions: expected as many labels as texts, got {len(labels)} and {len(texts)}")
        batch = len(labels if labels is not None else texts or ())
        return Condition(self._encode_labels(labels, batch), self._encode_texts(texts, batch))

    def _encode_labels(self, labels: Sequence[int | str | None] | None, batch: int) -> Tensor | None:
        labels = [None] * batch if labels is None else labels
        if not self.class_conditional:
            if any(label is not None for label in labels):
                raise UserError("class label: this model is not conditioned on classes")
            return None
        indices = [self.num_classes if label is None else self.class_index(label) for label in labels]
        return torch.tensor(indices, dtype=torch.int64, device=self.device)

    def _encode_texts(self, texts: Sequence[str] | None, batch: int) -> Tensor | None:
        texts = [""] * batch if texts is None else texts
        if self.text is None:
            if any(texts):
                raise UserError("prompt: this model is not conditioned on text")
            return None
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        states = self.text(self.text.tokenize(list(rows)).to(self.device))  # (distinct texts, L, D)
        return states[torch.tensor([rows[text] for text in texts], device=self.device)]  # (B, L, D)

    def class_index(self, name: int | str) -> int:
        """As `class_index`, among this model's classes."""
        return class_index(name, self.class_names)

    def metadata(self) -> dict[str, Any]:
        """The contents of `conditioning.json`."""
        text = None
        if self.text is not None:
            encoder = {"encoder": self.text.kind, "source": self.text.source}
            text = {**encoder, "max_tokens": self.text.max_tokens, "null_text": ""}
        return {
            "class_names": list(self.class_names),
            "class_conditional": self.class_conditional,
            "null_class": self.null_class,
            "dropout": self.dropout,
            "text": text,
            **({"untrained_classes": sorted(self.untrained)} if self.untrained else {}),
            **({} if self.words is None else {"training_words": self.words.to_json()}),
        }

    def index_entries(self) -> dict[str, list[str]]:
        """The entries of `model_index.json` for text_encoder/ and tokenizer/: library and class."""
        if self.text is None:
            return {}
        parts = {"text_encoder": self.text.model, "tokenizer": self.text.tokenizer}
        return {name: ["transformers", type(part).__name__] for name, part in parts.items()}

    def save_pretrained(self, folder: str | Path) -> dict[str, Any]:
        """Write conditioning.json and, for text, text_encoder/ and tokenizer/ into a model folder."""
        if self.text is not None:
            self.text.save(folder)
        metadata = self.metadata()
        atomic_write_json(Path(folder) / CONDITIONING_FILE, metadata)
        return metadata

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Conditioner":
        """Read a model folder; one without conditioning.json is a diffusers folder, and its other files are read."""
        folder = Path(folder)
        metadata = read_conditioning(folder)
        text = metadata.get("text")
        encoder = None
        if text is not None:
            encoder = TextEncoder.load(folder, text.get("max_tokens"), text["encoder"], text.get("source", ""))
        return cls(
            metadata["class_names"],
            encoder,
            class_conditional=metadata["class_conditional"],
            dropout=metadata["dropout"],
            untrained=metadata.get("untrained_classes", ()),
            words=TrainingWords.from_json(metadata.get("training_words")),
        ).eval()


def class_index(name: int | str, class_names: Sequence[str]) -> int:
    """The index of `name` in `class_names`, or `name` itself if it is a number below their count.

    `UserError` lists the names and the closest.
    """
    if isinstance(name, str) and name in class_names:
        return tuple(class_names).index(name)
    names = [_inert(class_name) for class_name in class_names]
    try:
        number = int(name)
    except ValueError:
        raise UserError(f"unknown class {_inert(str(name))!r}", remedy=suggest(_inert(str(name)), names)) from None
    if not 0 <= number < len(names):
        raise UserError(f"unknown class {number}: expected 0 to {len(names) - 1}", remedy=suggest(str(number), names))
    return number


def _inert(name: str) -> str:
    """A name that is safe to print on a terminal."""
    return replace_unprintable(printable_utf8(name), "\N{REPLACEMENT CHARACTER}")
