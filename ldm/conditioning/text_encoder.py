"""Text -> states (B, L, D): a small CLIP text model trained with the U-Net, or a frozen CLIP or T5."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autoencoders.weight_file import not_finite, refuse
from ldm.conditioning.tokenizer import DEFAULT_LIMIT, VOCABULARIES, default_length, train_tokenizer
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import atomic_folder, check_regular_folder, read_json
from ldm.runtime.tensors import open_tensors
from ldm.runtime.text import one_line, printable

logger = logging.getLogger("ldm")
Kind = Literal["embedded", "frozen"]


class TextEncoder(nn.Module):
    """A tokenizer and a transformer. Like Stable Diffusion it pads to `max_tokens` and masks nothing."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, kind: Kind, source: str) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.kind = kind
        self.source = source
        tokenizer.model_max_length = max_tokens  # stored with it: a stock pipeline pads to this
        tokenizer.padding_side = "right"
        if kind == "frozen":
            model.requires_grad_(False)
        self.train(self.training)

    @property
    def width(self) -> int:
        """Width D of the states."""
        config = self.model.config
        return getattr(config, "d_model", None) or config.hidden_size  # T5's name, CLIP's name

    def train(self, mode: bool = True) -> TextEncoder:
        """A frozen model stays in evaluation mode (T5 has dropout)."""
        super().train(mode and self.kind != "frozen")
        return self

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(B, L) int64 on the CPU, padded and cut to L = max_tokens."""
        if not texts:
            return torch.empty(0, self.max_tokens, dtype=torch.int64)
        call = {"padding": "max_length", "max_length": self.max_tokens, "truncation": True}
        return torch.tensor(self.tokenizer([printable_utf8(text) for text in texts], **call).input_ids)

    def fits(self, text: str) -> bool:
        """Whether no token of `text` is cut off."""
        return len(self.tokenizer(printable_utf8(text), verbose=False).input_ids) <= self.max_tokens

    def cut_words(self, text: str) -> tuple[str, ...]:
        """The words at the end of `text` of which tokens are cut off: they have no effect."""
        words = text.split()
        first = bisect.bisect_left(range(len(words)), True, key=lambda k: not self.fits(" ".join(words[: k + 1])))
        return tuple(words[first:])

    def count_cut(self, texts: Sequence[str], tokens: Tensor) -> int:
        """How many of these texts are cut; `tokens` (B, L) are theirs."""
        full = tokens[:, -2:-1].ne(self.tokenizer.pad_token_id).any(1).tolist()  # the others have padding
        return sum(1 for text, is_full in zip(texts, full, strict=True) if is_full and not self.fits(text))

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words that the tokenizer has no tokens for, each once."""
        unknown, marks = self.tokenizer.unk_token_id, {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        if unknown is None or unknown in marks:  # as CLIP's, which spells every word by its bytes
            return ()
        words = dict.fromkeys(printable_utf8(text).split())
        return tuple(word for word in words if unknown in self.tokenizer(word).input_ids)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, L, D), exactly what `StableDiffusionPipeline` takes: the last states, without a mask."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.kind != "frozen"):
            return self.model(input_ids=tokens, attention_mask=None)[0]

    def save(self, folder: str | Path) -> None:
        """Write text_encoder/ and tokenizer/ in the format of transformers."""
        with quietly(), atomic_folder(Path(folder) / "text_encoder") as part:
            self.model.save_pretrained(part)
        with atomic_folder(Path(folder) / "tokenizer") as part:
            self.tokenizer.save_pretrained(part)

    @classmethod
    def load(cls, folder: str | Path, max_tokens: int | None, kind: Kind, source: str) -> TextEncoder:
        """Read what `save` wrote, or the same parts of another diffusers folder."""
        folder = Path(folder)
        model = _load_model(str(folder / "text_encoder"), local=True)
        tokenizer = _load_tokenizer(str(folder / "tokenizer"), local=True)
        return cls(model, tokenizer, max_tokens or min(tokenizer.model_max_length, DEFAULT_LIMIT), kind, source)


def embedded_encoder(
    captions: Sequence[str],
    *,
    width: int,
    layers: int,
    heads: int,
    vocab_size: int,
    max_tokens: int | None,
    least_tokens: int,
    seed: int,
) -> TextEncoder:
    """A tokenizer trained on `captions` and a new CLIP text model; the global random state stays as it was."""
    from transformers import CLIPTextConfig, CLIPTextModel

    if width % heads:
        raise UserError(f"text_width: expected a multiple of text_heads = {heads}, got {width}")
    tokenizer = train_tokenizer(map(printable_utf8, captions), vocab_size)
    length = max_tokens or default_length(tokenizer, map(printable_utf8, captions), least_tokens)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPTextModel(config)
    return TextEncoder(model, tokenizer, length, "embedded", "embedded")


def frozen_encoder(name: str, captions: Iterable[str], max_tokens: int | None, least_tokens: int = 2) -> TextEncoder:
    """A CLIP or T5 of a local folder (itself, or its text_encoder/ and tokenizer/), or of the hub by its name."""
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local and (name.startswith((".", "/", "~", "\\")) or name.count("/") > 1):
        raise UserError(f"text_encoder: {name}: no such folder")
    parts = local and (folder / "text_encoder").is_dir()
    model = _load_model(str(folder / "text_encoder" if parts else folder) if local else name, local)
    tokenizer = _load_tokenizer(str(folder / "tokenizer" if parts else folder) if local else name, local)
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    if max_tokens is not None and max_tokens > limit:
        raise UserError(f"max_tokens: {name} takes at most {limit}, got {max_tokens}")
    length = max_tokens or default_length(tokenizer, map(printable_utf8, captions), least_tokens, limit)
    return TextEncoder(model, tokenizer, length, "frozen", folder.name if local else name)


def printable_utf8(text: str) -> str:
    """Text as it came, but with a replacement where it has half a surrogate pair, which has no UTF-8 form."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _load_model(where: str, local: bool) -> Any:
    from transformers import CLIPTextModel, T5EncoderModel

    kinds: dict[str, Callable[..., Any]] = {
        "clip": CLIPTextModel.from_pretrained,
        "clip_text_model": CLIPTextModel.from_pretrained,
        "t5": T5EncoderModel.from_pretrained,
    }
    if local and Path(where).is_dir():
        check_regular_folder(where)
    kind = _model_type(where, local)
    if kind not in kinds:
        raise UserError(f"text_encoder: {where}: expected a CLIP or T5 model, found model_type {kind!r}")
    with quietly(), torch.random.fork_rng(devices=[]), _refused(where, "weights (safetensors only)"):
        model, report = kinds[kind](
            where,
            use_safetensors=True,
            local_files_only=local,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
    _check_weights(where, local, model, report)
    return model.eval()


def _check_weights(where: str, local: bool, model: nn.Module, report: Mapping[str, Any]) -> None:
    """`UserError` unless all weights of the model came from its files, for transformers makes up what is missing."""
    problems = [f"{name}: expected {tuple(own)}, found {tuple(stored)}" for name, stored, own in _mismatched(report)]
    problems += [f"{name}: found nothing" for name in sorted(report["missing_keys"])]
    unused = sorted(report["unexpected_keys"])
    if problems:  # else they do no harm: a whole CLIP has the network of images as well
        problems += [f"{name!r:.200}: not a part of the model that config.json describes" for name in unused]
    for file in sorted(Path(where).glob("model*.safetensors")) if local else ():
        with open_tensors(file) as weights:
            types = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        whole = [name for name, dtype in types.items() if "F" not in dtype and not name.endswith("position_ids")]
        problems += [f"{name}: expected floating-point numbers, found {types[name]}" for name in whole]
    problems += not_finite(model.state_dict())
    with user_errors():
        refuse(f"text_encoder: {where}", problems)
    if unused:
        logger.info("text_encoder: %s: %d tensors are not used, such as %s", where, len(unused), printable(unused[0]))


def _mismatched(report: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return sorted((str(name), stored, own) for name, stored, own in report["mismatched_keys"])


def _model_type(where: str, local: bool) -> object:
    if local:
        return read_json(Path(where) / "config.json").get("model_type")
    from transformers import PretrainedConfig

    with _refused(where, "configuration"):
        return PretrainedConfig.get_config_dict(where)[0].get("model_type")


def _load_tokenizer(where: str, local: bool) -> Any:
    from transformers import AutoTokenizer

    if local and Path(where).is_dir():
        check_regular_folder(where)
        if not any((Path(where) / name).is_file() for name in VOCABULARIES):
            remedy = f"expected {', '.join(VOCABULARIES[:-1])} or {VOCABULARIES[-1]} (with merges.txt for a CLIP)"
            raise UserError(f"text_encoder: {where}: no vocabulary of a tokenizer in it", remedy=remedy)
    with quietly(), _refused(where, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local, trust_remote_code=False)
    if tokenizer.pad_token is None:
        raise UserError(f"text_encoder: {where}: expected a tokenizer with a pad token")
    return tokenizer


@contextmanager
def _refused(where: str, part: str) -> Iterator[None]:
    """The many errors of a missing, broken or refused file, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"text_encoder: {where}: cannot read its {part}: {one_line(error)}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars and no loading reports from transformers meanwhile."""
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
