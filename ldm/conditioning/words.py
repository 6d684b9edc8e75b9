"""The words of the training captions, which a model folder keeps so that sampling can name words it never saw."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

MAX_WORDS = 20_000  # the most frequent ones are kept
_MAX_LENGTH = 40  # characters of a word
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"  # scripts without spaces: a character is a word
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")


class StoredWords(TypedDict):
    """`TrainingWords` in conditioning.json."""

    words: str
    left_out: int


@dataclass(frozen=True)
class TrainingWords:
    """The words of the captions, in lower case; `left_out` rarer ones were not kept."""

    words: frozenset[str]
    left_out: int = 0

    @classmethod
    def of(cls, captions: Iterable[str]) -> TrainingWords:
        """The most frequent words of these captions, at most `MAX_WORDS`."""
        counts = Counter(word for caption in captions for word in words_of(caption))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(frozenset(ordered[:MAX_WORDS]), max(0, len(ordered) - MAX_WORDS))

    def unknown(self, text: str) -> tuple[str, ...]:
        """The words of a text that no kept word is, each once, in their order."""
        return tuple(dict.fromkeys(word for word in words_of(text) if word not in self.words))

    def to_json(self) -> StoredWords:
        """Compact: one string of all words."""
        return {"words": " ".join(sorted(self.words)), "left_out": self.left_out}

    @classmethod
    def from_json(cls, value: StoredWords | None) -> TrainingWords | None:
        """What `to_json` gave; None for the None of a folder that keeps no words."""
        return None if value is None else cls(frozenset(value["words"].split()), value["left_out"])


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, at most so long as are kept."""
    return [word[:_MAX_LENGTH] for word in _WORD.findall(text.lower())]
