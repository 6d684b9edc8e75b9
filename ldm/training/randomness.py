"""Randomness and data order as pure functions of (seed, step): a resumed run needs no stored random state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoencoders.distributed import ShardGenerator


def key(*parts: int | str) -> int:
    """A 63-bit seed from any parts (SHA-256), so that nearby parts give unrelated streams."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class BatchShard:
    """Which part of each global batch this process works on, and in how many forward calls (gradient accumulation)."""

    batch_size: int  # examples an optimiser step, over all processes
    accumulation: int = 1
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.accumulation * self.processes):
            factors = f"processes x accumulation = {self.processes} x {self.accumulation}"
            raise ValueError(f"batch size {self.batch_size} is not divisible by {factors}")

    @property
    def size(self) -> int:
        """Examples in one forward call of one process."""
        return self.batch_size // (self.accumulation * self.processes)

    def rows(self, micro: int) -> slice:
        """The rows of the global batch in this process's forward call number `micro`."""
        start = (micro * self.processes + self.rank) * self.size
        return slice(start, start + self.size)


@dataclass(frozen=True)
class StepRandom:
    """The random numbers of one forward call: drawn for the global batch, then cut to the rows of this call.

    So an example gets the same numbers whatever the number of processes and accumulation steps.
    """

    seed: int
    step: int
    micro: int
    shard: BatchShard
    device: torch.device

    @property
    def rows(self) -> slice:
        """The rows of the global batch in this call."""
        return self.shard.rows(self.micro)

    def generator(self, purpose: str) -> torch.Generator:
        """A generator on the device that knows which rows of the global batch this call has."""
        generator = ShardGenerator(self.device, self.rows.start, self.shard.batch_size)
        generator.manual_seed(key(self.seed, self.step, purpose))
        return generator

    def _global(self, purpose: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(key(self.seed, self.step, purpose))

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, (size, *shape)."""
        numbers = torch.randn(
            (self.shard.batch_size, *shape), generator=self._global(purpose), device=self.device, dtype=torch.float32
        )
        return numbers[self.rows]

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers in [0, 1), (size, *shape)."""
        numbers = torch.rand((self.shard.batch_size, *shape), generator=self._global(purpose), device=self.device)
        return numbers[self.rows]

    def integers(self, purpose: str, high: int) -> Tensor:
        """Uniform integers in [0, high), (size,)."""
        numbers = torch.randint(high, (self.shard.batch_size,), generator=self._global(purpose), device=self.device)
        return numbers[self.rows]

    def stratified(self, purpose: str) -> Tensor:
        """Uniform numbers in [0, 1), (size,), those of the global batch evenly spaced from one random start.

        Every one is uniform by itself, and the batch covers the interval (Kingma et al. 2021, appendix I.1).
        """
        start = torch.rand((), generator=self._global(purpose), device=self.device)
        rows = torch.arange(self.rows.start, self.rows.stop, device=self.device)
        return (start + rows / self.shard.batch_size) % 1


@dataclass(frozen=True)
class BatchPlan:
    """The examples of every forward call from step `start` to `stop`, as lists of (index, augmentation seed).

    The data are visited in one permutation an epoch; batches run across epoch borders, so every batch is full.
    Iterating it gives the calls of one process in order; it can serve a DataLoader as batch sampler.
    """

    length: int  # examples in the data set
    seed: int
    shard: BatchShard
    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError("no examples to train on")

    def __len__(self) -> int:
        return (self.stop - self.start) * self.shard.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, list[int]] = {}
        for step in range(self.start, self.stop):
            first = step * self.shard.batch_size
            epochs = range(first // self.length, (first + self.shard.batch_size - 1) // self.length + 1)
            orders = {epoch: orders.get(epoch) or self._order(epoch) for epoch in epochs}
            for micro in range(self.shard.accumulation):
                rows = self.shard.rows(micro)
                positions = (divmod(first + row, self.length) for row in range(rows.start, rows.stop))
                indices = ((epoch, orders[epoch][position]) for epoch, position in positions)
                yield [(index, key(self.seed, "augment", epoch, index)) for epoch, index in indices]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(key(self.seed, "order", epoch))
        return torch.randperm(self.length, generator=generator).tolist()
