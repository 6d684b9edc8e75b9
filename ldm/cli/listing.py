"""`ldm list samplers|guidances|configs`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ldm.runtime.errors import UserError
from ldm.runtime.settings import config_names
from ldm.runtime.text import suggest
from samplers import GuidanceInfo, guidances, parse_guidance, samplers

Info = TypeVar("Info")
KINDS = ("samplers", "guidances", "configs")


def run(arguments: list[str]) -> int:
    """Print one table."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: ldm list samplers|guidances|configs")
        return 0 if arguments else 2
    if arguments[0] not in KINDS:
        raise UserError(f"cannot list {arguments[0]!r}", remedy=suggest(arguments[0], KINDS))
    if arguments[0] == "configs":
        print("\n".join(config_names()))
    elif arguments[0] == "samplers":
        _table(
            ("name", "order", "random", "calls a step", "options", "source"),
            [
                (i.name, i.order, "no" if i.deterministic else "yes", i.evaluations, _options(i.options), i.source)
                for i in _known(samplers)
            ],
        )
    else:
        rows = [(i.name, f"+{i.evaluations}", _options(i.options), _needs(i), i.source) for i in _known(guidances)]
        _table(("name", "calls", "options", "needs", "source"), rows)
    return 0


def _known(table: Callable[[], Mapping[str, Info]]) -> list[Info]:
    """All entries of a registry; `UserError` for a plug-in that cannot be used."""
    try:
        return list(table().values())
    except ValueError as error:
        raise UserError(str(error)) from None


def _options(options: Mapping[str, object]) -> str:
    """`scale, interval=None`: without a default the name alone."""
    shown = [name if value is inspect.Parameter.empty else f"{name}={value}" for name, value in options.items()]
    return ", ".join(shown) or "-"


_REMEDIES = {
    "uncond": "condition dropout in training",
    "classifier": "--classifier",
    "energy": "--energy",
    "weak": "--weak",
    "perturbed": "self-attention",
    "blurred": "self-attention",
    "skipped": "-",
}


def _needs(info: GuidanceInfo) -> str:
    """The branches that a guidance asks for, and what each takes: `weak (--weak)`."""
    required = [f"{name}=2.0" for name, default in info.options.items() if default is inspect.Parameter.empty]
    try:
        names = parse_guidance(f"{info.name}({', '.join(required)})").needs
    except ValueError:  # a plug-in's, whose options are not numbers
        return "?"
    return (
        ", ".join(f"{name} ({_REMEDIES[name]})" if _REMEDIES.get(name, "-") != "-" else name for name in names) or "-"
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    cells = [head, *[tuple(str(cell) for cell in row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
