"""A row of the bench: two functions that do the same work, and what is known of that work."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ldm.runtime.compilation import Mode, compile_network

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Pair:
    """Both sides of a row, ready to run again and again."""

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    difference: Callable[[], float]
    """How far the two results are apart, relative to their size."""
    tolerance: float = 1e-5
    flops: float | None = None
    """Floating-point operations of one call; None: counted while ours runs."""
    bytes: float = 0.0
    """What one call must read and write at least."""


class Benchmark:
    """What the rows share: device, mode of compilation, folders that go when the bench ends."""

    def __init__(self, device: torch.device, mode: str) -> None:
        self.device, self.mode = device, mode
        self.compile: Mode = "default" if mode == "default" else "reduce-overhead" if mode != "eager" else "none"
        self._stack = ExitStack()

    def __enter__(self) -> Benchmark:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def folder(self) -> Path:
        """A new empty folder."""
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory()))

    def compiled(self, network: Network) -> Network:
        """The network on the device, compiled where this run of the rows compares compiled sides."""
        network.to(self.device)
        compile_network(network, self.compile)
        return network

    def randn(self, *shape: int) -> torch.Tensor:
        """Normal numbers on the device, the same at each call."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)


@dataclass(frozen=True)
class Row:
    """`goal`: the ratio theirs / ours that is aimed at on a CPU; `floor`: below which `--check` fails, the goal unless
    given."""

    name: str
    title: str
    build: Callable[[Benchmark], Pair]
    goal: float | None = None
    floor: float | None = None
    host: bool = False
    """Timed on the host: what the device does at the same time does not count."""
    memory: bool = False
    """Compared in peak memory, not in time."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where it is run unless named."""
    half: bool = False
    """Computes in bf16: its limit is that of bf16 products."""
    compiles: bool = False
    """Has a network, so that compiled sides are compared as well."""


@dataclass
class Registry:
    rows: dict[str, Row] = field(default_factory=dict)

    def __call__(self, name: str, title: str, **details: Any) -> Callable[[Callable[[Benchmark], Pair]], Callable]:
        """Decorate a function that builds the two sides."""

        def add(build: Callable[[Benchmark], Pair]) -> Callable[[Benchmark], Pair]:
            self.rows[name] = Row(name, title, build, **details)
            return build

        return add


row = Registry()


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-12))
