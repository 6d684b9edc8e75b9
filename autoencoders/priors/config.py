"""The settings of a prior over indices, of its sampling, and the shape of the maps of indices. Imports no torch."""

from __future__ import annotations

import math
import reprlib
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from autoencoders.settings import check_int, check_number

MAX_CODES = 2**18  # the head gives a number for every code
_MAX_LENGTH = 2**16  # codes of one level of one image
_MAX_LEVELS = 8
_MAX_CLASSES = 2**20
_MAX_WIDTH = 2**14
_FILE_NAMES = {"codebooks": "parts"}  # settings that config.json has under another name

Kind = Literal["pixelcnn", "transformer"]


@dataclass(frozen=True)
class PriorConfig:
    """Architecture of a prior over codes; every level of codes gets a network of this shape."""

    kind: Kind = "pixelcnn"
    """pixelcnn: gated PixelCNN, masked convolutions; transformer: decoder only, causal attention over all codes."""
    width: int = 64
    """Channels of the network."""
    layers: int = 8
    """Gated layers, or transformer blocks."""
    heads: int = 4
    """transformer: attention heads; must divide width."""
    kernel_size: int = 5
    """pixelcnn: side of the masked convolutions, odd."""
    dropout: float = 0.0
    """Share of activations left out in training."""
    token_masking: float = 0.0
    """Probability with which a code of the network's input is replaced by a random one in training, so that it learns
    to continue from imperfect codes."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind: expected {' or '.join(get_args(Kind))}, got {reprlib.repr(self.kind)}")
        check_int("width", self.width, 1, _MAX_WIDTH)
        check_int("layers", self.layers, 1, 256)
        check_int("heads", self.heads, 1, 256)
        check_int("kernel_size", self.kernel_size, 3, 63)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {self.kernel_size}")
        if self.kind == "transformer" and self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width {self.width}, got {self.heads}")
        for name in ("dropout", "token_masking"):
            check_number(name, getattr(self, name), 0, 1)
            if getattr(self, name) == 1:
                raise ValueError(f"{name}: expected a number below 1, got 1")


@dataclass(frozen=True)
class CodeSampling:
    """How indices are drawn from a prior."""

    temperature: float = 1.0
    """Codes: logits are divided by it; below 1 the likely ones are taken more often."""
    top_k: int = 0
    """Codes: only the k most likely are drawn; 0: all."""
    top_p: float = 1.0
    """Codes: only the likeliest, as many as together have this probability, are drawn (Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, 1e3, above=True)
        check_int("top_k", self.top_k, 0, 2**31)
        check_number("top_p", self.top_p, 0, 1, above=True)


@dataclass(frozen=True)
class CodeGrid:
    """One level of codes: maps (height, width) of numbers from 0 to num_codes - 1.

    With several codebooks (product, residual quantisation) the map is `codebooks` times wider than the grid of
    positions: the indices of a position are side by side, the first codebook's first.
    """

    num_codes: int
    height: int
    width: int
    codebooks: int = 1

    def __post_init__(self) -> None:
        check_int("num_codes", self.num_codes, 1, MAX_CODES)
        for name in ("height", "width", "codebooks"):
            check_int(name, getattr(self, name), 1, _MAX_LENGTH)
        if self.width % self.codebooks or self.height * self.width > _MAX_LENGTH:
            raise ValueError(
                f"code map: expected at most {_MAX_LENGTH} codes, a multiple of {self.codebooks} in a row, "
                f"got {self.height} x {self.width}"
            )

    @property
    def length(self) -> int:
        """N, the codes of an image."""
        return self.height * self.width

    @property
    def columns(self) -> int:
        """Width of the grid of positions."""
        return self.width // self.codebooks

    def entries(self) -> dict[str, int]:
        """The level in config.json."""
        return {_FILE_NAMES.get(name, name): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class PriorShape:
    """The levels of codes that priors model, coarse to fine, and their conditions.

    `num_classes` K means labels 0 ... K - 1 and K for no class; 0: not conditioned on classes. `context_dim` is the
    width D of text states (B, L, D); None: not conditioned on text.
    """

    levels: tuple[CodeGrid, ...]
    num_classes: int = 0
    context_dim: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.levels) <= _MAX_LEVELS:
            raise ValueError(f"levels: expected 1 to {_MAX_LEVELS} levels of codes, got {len(self.levels)}")
        check_int("num_classes", self.num_classes, 0, _MAX_CLASSES)
        if self.context_dim is not None:
            check_int("context_dim", self.context_dim, 1, _MAX_WIDTH)
        for coarse, fine in zip(self.levels, self.levels[1:], strict=False):
            if fine.height % coarse.height or fine.columns % coarse.columns:
                raise ValueError(
                    f"levels: expected each to be a multiple of the coarser one, got {coarse.height} x {coarse.columns}"
                    f" and {fine.height} x {fine.columns}"
                )

    @property
    def uniform_bits(self) -> float:
        """Bits a code under a uniform distribution: the mean of log2 K over all codes."""
        total = sum(level.length * math.log2(level.num_codes) for level in self.levels)
        return total / sum(level.length for level in self.levels)


def config_of(entries: dict[str, Any]) -> tuple[PriorConfig, PriorShape]:
    """Settings and shape from an untrusted config.json; `ValueError` names the entry that is wrong."""
    known = {"settings", "levels", "num_classes", "context_dim"}
    entries = {name: value for name, value in entries.items() if not name.startswith("_")}
    if set(entries) != known:
        other = sorted(set(entries) ^ known)[0]
        raise ValueError(f"expected {', '.join(sorted(known))}; {reprlib.repr(other)} is missing or not known")
    levels = entries["levels"]
    if not isinstance(levels, list) or not 1 <= len(levels) <= _MAX_LEVELS:
        raise ValueError(f"levels: expected a list of 1 to {_MAX_LEVELS}, got {reprlib.repr(levels)}")
    grids = tuple(_from_entries(CodeGrid, f"levels[{index}]", level) for index, level in enumerate(levels))
    settings = _from_entries(PriorConfig, "settings", entries["settings"])
    return settings, PriorShape(grids, entries["num_classes"], entries["context_dim"])


def _from_entries(schema: type[Any], name: str, values: object) -> Any:
    known = {_FILE_NAMES.get(field, field): field for field in schema.__dataclass_fields__}
    if not isinstance(values, dict) or not set(values) <= set(known):
        raise ValueError(f"{name}: expected an object with {', '.join(known)}, got {reprlib.repr(values)}")
    try:
        return schema(**{known[name]: value for name, value in values.items()})
    except TypeError:
        raise ValueError(f"{name}: an entry is missing; expected {', '.join(known)}") from None
