"""A CLIP-style byte-pair tokenizer, trained on the captions of a data set."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ldm.runtime.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
BASE_SIZE = 2 * 256 + 2  # every byte, within and at the end of a word, so that no text is unknown; the two marks
DEFAULT_LIMIT = 77  # tokens, CLIP's
# Without one of these transformers reads no vocabulary, and may raise nothing
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Any:
    """A `transformers.CLIPTokenizer` of at most `vocab_size` tokens; the same captions give the same tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    if vocab_size < BASE_SIZE:
        raise UserError(f"vocab_size: expected at least {BASE_SIZE} (all bytes and two marks), got {vocab_size}")
    like = CLIPTokenizer().backend_tokenizer  # CLIP's own splitting and lower-casing
    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = like.normalizer, like.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(captions, trainer)

    # CLIP's order: bytes, bytes at the end of a word, merges, marks
    vocabulary = {token: index for index, token in enumerate(alphabet + [letter + "</w>" for letter in alphabet])}
    merges = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        if len(vocabulary) + 2 >= vocab_size and left + right not in vocabulary:
            break
        vocabulary.setdefault(left + right, len(vocabulary))
        merges.append((left, right))
    for mark in (START, END):
        vocabulary[mark] = len(vocabulary)
    return _clip_tokenizer(vocabulary, merges)


def _clip_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Through the two files of CLIP's format, which all versions of transformers read."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
        settings = {"tokenizer_class": "CLIPTokenizer", **marks}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def default_length(tokenizer: Any, captions: Iterable[str], least: int, most: int = DEFAULT_LIMIT) -> int:
    """The number of tokens of the longest caption, marks included, from `least` to `most`."""
    longest = max((len(tokenizer(caption).input_ids) for caption in set(captions)), default=2)
    return min(max(longest, least), most, DEFAULT_LIMIT)
