"""Randomness and data order as pure functions of (seed, step): a resumed run needs no stored random state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoencoders.posterior_noise import ShardGenerator


def key(*parts: int | str) -> int:
    """A 63-bit seed from any parts (SHA-256), so that nearby parts give unrelated streams."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class BatchShard:
    """Which part of each global batch this process works on, and in how many pieces (gradient accumulation)."""

    batch_size: int  # examples an optimiser step, over all processes
    accumulation: int = 1
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.accumulation * self.processes):
            raise ValueError(
                f"batch size {self.batch_size} is not divisible by processes x accumulation = "
                f"{self.processes} x {self.accumulation}"
            )

    @property
    def size(self) -> int:
        """Examples in one forward call of one process."""
        return self.batch_size // (self.accumulation * self.processes)

    def part(self, micro: int) -> slice:
        """The positions in the global batch of this process's piece number `micro`."""
        start = (micro * self.processes + self.rank) * self.size
        return slice(start, start + self.size)


@dataclass(frozen=True)
class StepRandom:
    """The random numbers of one forward call: drawn for the global batch, then cut to this process's piece.

    So the same numbers meet the same examples whatever the number of processes and accumulation steps.
    """

    seed: int
    step: int
    micro: int
    share: BatchShard
    device: torch.device

    def generator(self, purpose: str) -> torch.Generator:
        """A generator on the device that knows which rows of the global batch this piece has."""
        part = self.share.part(self.micro)
        generator = ShardGenerator(self.device, part.start, self.share.batch_size)
        generator.manual_seed(key(self.seed, self.step, purpose))
        return generator

    def _global(self, purpose: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(key(self.seed, self.step, purpose))

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, (size, *shape)."""
        drawn = torch.randn(
            (self.share.batch_size, *shape), generator=self._global(purpose), device=self.device, dtype=torch.float32
        )
        return drawn[self.share.part(self.micro)]

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers in [0, 1), (size, *shape)."""
        drawn = torch.rand((self.share.batch_size, *shape), generator=self._global(purpose), device=self.device)
        return drawn[self.share.part(self.micro)]

    def integers(self, purpose: str, high: int) -> Tensor:
        """Uniform integers in [0, high), (size,)."""
        drawn = torch.randint(high, (self.share.batch_size,), generator=self._global(purpose), device=self.device)
        return drawn[self.share.part(self.micro)]

    def stratified(self, purpose: str) -> Tensor:
        """Uniform numbers in [0, 1), (size,), those of the global batch evenly spaced from one random start.

        Each is uniform by itself, and the batch covers the interval (Kingma et al. 2021, appendix I.1).
        """
        start = torch.rand((), generator=self._global(purpose), device=self.device)
        part = self.share.part(self.micro)
        places = torch.arange(part.start, part.stop, device=self.device)
        return (start + places / self.share.batch_size) % 1


@dataclass(frozen=True)
class BatchPlan:
    """The examples of every forward call from step `start` to `stop`, as lists of (index, augmentation seed).

    The data are visited in one permutation an epoch; batches run across epoch borders, so every batch is full.
    Iterating it gives the calls of one process in order; it can serve a DataLoader as batch sampler.
    """

    length: int  # examples in the data set
    seed: int
    share: BatchShard
    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError("no examples to train on")

    def __len__(self) -> int:
        return (self.stop - self.start) * self.share.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, list[int]] = {}
        for step in range(self.start, self.stop):
            first = step * self.share.batch_size
            epochs = range(first // self.length, (first + self.share.batch_size - 1) // self.length + 1)
            orders = {epoch: orders.get(epoch) or self._order(epoch) for epoch in epochs}
            for micro in range(self.share.accumulation):
                part = self.share.part(micro)
                places = (divmod(first + place, self.length) for place in range(part.start, part.stop))
                yield [
                    (orders[epoch][place], key(self.seed, "augment", epoch, orders[epoch][place]))
                    for epoch, place in places
                ]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(key(self.seed, "order", epoch))
        return torch.randperm(self.length, generator=generator).tolist()
