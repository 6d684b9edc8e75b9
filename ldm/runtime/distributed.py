"""The processes of one run, as `torchrun` starts them: how work is shared among them and brought together again.

Whole batches are dealt out in turn, and they are those that one process would draw, so that nothing depends on the
number of processes. The first process collects, writes and prints; the others only compute.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ldm.runtime.errors import LostProcessError, StoppedByOtherProcess, UserError

T = TypeVar("T")
logger = logging.getLogger("ldm")
TIMEOUT = "LDM_PROCESS_TIMEOUT"  # seconds; the first process may be alone at its figures for so long
_SECONDS = 1800.0


@dataclass(frozen=True)
class Processes:
    """This process, number `rank` of `count`. Each call of a method that brings together must be made by all."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the first, which writes and prints."""
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        """As `Pipeline.generate` takes it: this process draws the batches rank, rank + count, ..."""
        return self.rank, self.count

    def batch_starts(self, total: int, batch_size: int) -> range:
        """Where this process's batches of `total` samples begin."""
        return range(self.rank * batch_size, total, self.count * batch_size)

    def warn_if_idle(self, total: int, batch_size: int) -> None:
        """Say once if some of the processes would have nothing to draw."""
        if self.is_main and -(-total // batch_size) < self.count:
            logger.warning("%d samples in batches of %d leave processes idle; lower `batch_size`", total, batch_size)

    def device(self, device: torch.device) -> torch.device:
        """Of several GPUs this process's own."""
        if self.count == 1 or device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())

    def gather(self, value: T) -> list[T]:
        """What each process gave, in their order, on the first; on the others []."""
        if self.count == 1:
            return [value]
        found: list[Any] | None = [None] * self.count if self.is_main else None
        with _heard():
            dist.gather_object(value, found)
        return found or []

    def run_on_main_and_broadcast(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first process, which alone does it; what it raises there stops all."""
        if self.count == 1:
            return work()
        found, failure = _tried(work) if self.is_main else (None, None)
        told = [(found, _told(failure))]
        with _heard():
            dist.broadcast_object_list(told)
        self._stop(failure, [told[0][1]])
        return told[0][0]  # type: ignore[return-value]

    def run_on_all(self, work: Callable[[], T]) -> T:
        """`work()` of each process; what one of them raises stops all, so that none waits for it."""
        if self.count == 1:
            return work()
        found, failure = _tried(work)
        told: list[Any] = [None] * self.count
        with _heard():
            dist.all_gather_object(told, _told(failure))
        self._stop(failure, told)
        return found  # type: ignore[return-value]

    def main_process_first(self, work: Callable[[], T]) -> T:
        """`work()` of each process, the first before the others, which find what it left in a cache."""
        made: list[T] = []
        self.run_on_main_and_broadcast(lambda: made.append(work()))
        return self.run_on_all(lambda: made[0] if made else work())

    def gather_batches(self, batches: Iterator[torch.Tensor], number: int) -> Iterator[torch.Tensor]:
        """All `number` batches on the first process, in order, from those of each; on the others none."""
        if self.count == 1:
            yield from batches
            return
        for _ in range(-(-number // self.count)):
            own = next(batches, None)
            for batch in self.gather(None if own is None else own.cpu()):
                if batch is not None:
                    yield batch

    def _stop(self, failure: Exception | None, told: list[tuple[bool, str] | None]) -> None:
        """Raise what stops this process, if anything: a refusal is told by the first, any other failure by its own."""
        reasons = [reason for reason in told if reason is not None]
        if not reasons:
            return
        if failure is not None and (self.is_main or not isinstance(failure, UserError)):
            raise failure
        refused, text = reasons[0]
        if self.is_main and refused:
            raise UserError(text)
        raise StoppedByOtherProcess(2 if refused else 1)


SINGLE_PROCESS = Processes()


@contextmanager
def torchrun_processes() -> Iterator[Processes]:
    """The processes that `torchrun` started; without it this one alone.

    They talk through gloo, whatever the device. One that ends or is silent for half an hour (`LDM_PROCESS_TIMEOUT`
    seconds) ends the others with `LostProcessError`. `UserError` where the environment tells of other processes and
    not where they are.
    """
    if not os.environ.get("WORLD_SIZE", "1").strip().isdigit():
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: not a number of processes", remedy="start with torchrun"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield SINGLE_PROCESS
        return
    try:
        seconds = float(os.environ.get(TIMEOUT, _SECONDS))
        with _heard():
            dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    except (ValueError, OverflowError) as error:
        raise UserError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but: {error}", remedy="start with torchrun") from None
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def current_processes() -> Processes:
    """Those that train together with this one, which is alone where it has met no others."""
    together = dist.is_available() and dist.is_initialized()
    return Processes(dist.get_rank(), dist.get_world_size()) if together else SINGLE_PROCESS


def _tried(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _told(failure: Exception | None) -> tuple[bool, str] | None:
    return None if failure is None else (isinstance(failure, UserError), str(failure))


@contextmanager
def _heard() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # gloo's word for a closed connection and for silence
        raise LostProcessError("another process of this run ended or did not answer in time") from None
