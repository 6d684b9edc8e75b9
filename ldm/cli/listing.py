"""`ldm list samplers|guidances|bottlenecks|metrics|configs`."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import TypeVar

from autoencoders import bottlenecks
from ldm.cli.tables import terminal_width, wrapped_table
from ldm.evaluation.registry import autoencoder_metrics, metrics
from ldm.runtime.errors import UserError
from ldm.runtime.settings import config_names
from ldm.runtime.text import suggest
from samplers import GuidanceInfo, SamplerInfo, guidances, parse_guidance, samplers

Info = TypeVar("Info")
KINDS = ("samplers", "guidances", "bottlenecks", "metrics", "configs")


def run(arguments: list[str]) -> int:
    """Print one table."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: ldm list {'|'.join(KINDS)}")
        return 0 if arguments else 2
    if arguments[0] not in KINDS:
        raise UserError(f"cannot list {arguments[0]!r}", remedy=suggest(arguments[0], KINDS))
    head: tuple[str, ...]
    rows: list[tuple[object, ...]]
    if arguments[0] == "configs":
        print("\n".join(config_names()))
        return 0
    if arguments[0] == "samplers":
        head = ("name", "order", "random", "evaluations a step", "options", "source")
        rows = [
            (i.name, _order(i), "no" if i.deterministic else "yes", i.evaluations, _options(i.options), i.source)
            for i in _entries(samplers)
        ]
    elif arguments[0] == "bottlenecks":
        head = ("name", "latents", "prior", "options", "source")
        rows = []
        for i in _entries(bottlenecks):
            options = {option.name: option.default for option in dataclasses.fields(i)}  # type: ignore[arg-type]
            latents = (i.__doc__ or "").split("\n")[0].rstrip(".")
            rows.append((i.name, latents, "yes" if i.has_prior else "no", _options(options), i.source))
    elif arguments[0] == "metrics":
        head = ("name", "of", "needs", "options", "measures")
        infos = [("model", info) for info in metrics.all()] + [("autoencoder", i) for i in autoencoder_metrics.all()]
        rows = [(i.name, of, ", ".join(sorted(i.needs)), ", ".join(i.options) or "-", i.help) for of, i in infos]
    else:
        head = ("name", "evaluations", "options", "needs", "source")
        rows = [(i.name, f"+{i.evaluations}", _options(i.options), _needs(i), i.source) for i in _entries(guidances)]
    print(wrapped_table(head, rows, terminal_width()))
    if arguments[0] == "samplers":
        note = "order: of convergence from the sampler's own start; inside: of its steps between the first and the last"
        print(textwrap.fill(note, terminal_width() or len(note)))
    return 0


def _order(info: SamplerInfo) -> str:
    return str(info.order) + (f" (inside {info.full_order})" if info.full_order > info.order else "")


def _entries(table: Callable[[], Mapping[str, Info]]) -> list[Info]:
    """All entries of a registry; `UserError` for a plug-in that cannot be used."""
    try:
        return list(table().values())
    except ValueError as error:
        raise UserError(str(error)) from None


def _options(options: Mapping[str, object]) -> str:
    """`scale, interval=None`: without a default the name alone."""
    texts = [name if value is inspect.Parameter.empty else f"{name}={value}" for name, value in options.items()]
    return ", ".join(texts) or "-"


_REQUIREMENTS = {
    "uncond": "condition dropout in training",
    "classifier": "--classifier",
    "energy": "--energy",
    "weak": "--weak",
    "perturbed": "self-attention",
    "blurred": "self-attention",
}


def _needs(info: GuidanceInfo) -> str:
    """The branches of a guidance, and what each requires: `weak (--weak)`."""
    required = [f"{name}=2.0" for name, default in info.options.items() if default is inspect.Parameter.empty]
    try:
        names = parse_guidance(f"{info.name}({', '.join(required)})").needs
    except ValueError:  # a plug-in whose options are not numbers
        return "?"
    return ", ".join(f"{name} ({_REQUIREMENTS[name]})" if name in _REQUIREMENTS else name for name in names) or "-"
