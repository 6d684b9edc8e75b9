"""conditioning.json: what it holds, and what stands for it in a folder of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import Meta

from ldm.conditioning.config import CONDITIONING_FILE
from ldm.conditioning.words import StoredWords
from ldm.runtime.errors import UserError
from ldm.runtime.files import is_there, read_json


class TextMetadata(TypedDict):
    encoder: Literal["embedded", "frozen"]
    max_tokens: NotRequired[Annotated[int, Meta(ge=1, le=512)]]
    source: NotRequired[str]


class Metadata(TypedDict):
    """The contents of conditioning.json."""

    class_names: list[str]
    class_conditional: bool
    dropout: Annotated[float, Meta(ge=0, le=1)]
    text: NotRequired[TextMetadata | None]
    untrained_classes: NotRequired[list[int]]
    training_words: NotRequired[StoredWords | None]


def read_metadata(path: Path) -> Metadata:
    """The checked contents of a file that may come from anybody."""
    metadata = read_json(path, Metadata)
    text = metadata.get("text")
    if text is not None and "max_tokens" not in text:
        raise UserError(f"{path}: text: expected max_tokens from 1 to 512")
    if metadata["class_conditional"] and not metadata["class_names"]:
        raise UserError(f"{path}: class_names: expected the classes of a model with class_conditional, got none")
    untrained, count = metadata.get("untrained_classes", []), len(metadata["class_names"])
    if any(not 0 <= label < count for label in untrained):
        raise UserError(f"{path}: untrained_classes: expected a list of numbers below {count}")
    return metadata


class _UNetClasses(TypedDict):
    num_class_embeds: NotRequired[Annotated[int, Meta(ge=1, le=2**20)] | None]


def guess_metadata(folder: Path) -> Metadata:
    """For a folder of diffusers: its last class is taken as null, its dropout as Stable Diffusion's."""
    path = folder / "unet" / "config.json"
    embeds = read_json(path, _UNetClasses).get("num_class_embeds") if is_there(path) else None
    names = [str(index) for index in range((embeds or 1) - 1)]
    text: TextMetadata | None = None
    if (folder / "text_encoder").is_dir():
        text = {"encoder": "frozen", "source": folder.name}
    return {"class_names": names, "class_conditional": bool(names), "dropout": 0.1, "text": text}


def read_conditioning(folder: Path) -> Metadata:
    """The contents of a model folder's conditioning.json, guessed for a folder of diffusers, which has none."""
    file = folder / CONDITIONING_FILE
    return read_metadata(file) if is_there(file) else guess_metadata(folder)
