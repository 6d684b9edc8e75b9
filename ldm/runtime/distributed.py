"""The processes of one run that `torchrun` started: how they divide the work and combine the results.

Each process takes whole batches, every `count`-th one, and a batch is the same on any number of processes. The main
process collects, writes and prints; the others only compute.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ldm.runtime.errors import LostProcessError, StoppedByOtherProcess, UserError
from ldm.runtime.locks import FolderLock

if TYPE_CHECKING:  # settings are parsed, and refused, without torch
    import torch

T = TypeVar("T")
logger = logging.getLogger("ldm")
TIMEOUT = "LDM_PROCESS_TIMEOUT"  # seconds; the main process may compute metrics alone for so long
_SECONDS = 1800.0


@dataclass(frozen=True)
class Processes:
    """This process, number `rank` of `count`. All processes must make the calls that exchange data."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, which writes and prints."""
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        """(rank, count), as `Pipeline.generate` takes it: this process samples the batches rank, rank + count, ..."""
        return self.rank, self.count

    def batch_starts(self, total: int, batch_size: int) -> range:
        """Index of the first sample of each batch of this process, out of `total` samples."""
        return range(self.rank * batch_size, total, self.count * batch_size)

    def warn_if_idle(self, total: int, batch_size: int) -> None:
        """Log once if there are fewer batches than processes."""
        if self.is_main and -(-total // batch_size) < self.count:
            logger.warning("%d samples in batches of %d leave processes idle; lower `batch_size`", total, batch_size)

    def device(self, device: torch.device) -> torch.device:
        """The GPU of this process, where there are several."""
        if self.count == 1 or device.type != "cuda" or device.index is not None:
            return device
        import torch

        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())

    def gather(self, value: T) -> list[T]:
        """The values of all processes in order, on the main one; [] on the others."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] | None = [None] * self.count if self.is_main else None
        with _connection_errors():
            dist.gather_object(value, values)
        return values or []

    def run_on_main_and_broadcast(self, work: Callable[[], T]) -> T:
        """The result of `work`, which the main process alone computes; an exception there stops all processes."""
        if self.count == 1:
            return work()
        import torch.distributed as dist

        result, failure = _attempt(work) if self.is_main else (None, None)
        message = [(result, _summary(failure))]
        with _connection_errors():
            dist.broadcast_object_list(message)
        self._raise(failure, [message[0][1]])
        return message[0][0]  # type: ignore[return-value]

    def run_on_all(self, work: Callable[[], T]) -> T:
        """`work()` of each process; an exception in one of them stops all, so that none waits for it."""
        if self.count == 1:
            return work()
        result, failure = _attempt(work)
        with _connection_errors():
            summaries = self.all_gather(_summary(failure))
        self._raise(failure, summaries)
        return result  # type: ignore[return-value]

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes in order, on all of them."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """A tensor summed over the processes, in place."""
        import torch.distributed as dist

        if self.count > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes, in place."""
        return self.sum(values).div_(self.count) if self.count > 1 else values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether a flag is set on any process; `device` is one that the processes communicate from."""
        import torch

        return flag if self.count == 1 else bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def main_process_first(self, work: Callable[[], T]) -> T:
        """`work()` of each process; the others start when the main one has filled the cache that they read."""
        results: list[T] = []
        self.run_on_main_and_broadcast(lambda: results.append(work()))
        return self.run_on_all(lambda: results[0] if results else work())

    @contextmanager
    def lock(self, folder: str | Path, work: str, setting: str = "output_dir") -> Iterator[None]:
        """Within the block the main process holds a `FolderLock`; all stop where another command has it."""
        with ExitStack() as held:

            def take() -> None:
                held.enter_context(FolderLock(folder, work=work, setting=setting))

            self.run_on_main_and_broadcast(take)
            yield

    def gather_batches(self, batches: Iterator[torch.Tensor], number: int) -> Iterator[torch.Tensor]:
        """All `number` batches in order, on the main process; none on the others."""
        if self.count == 1:
            yield from batches
            return
        for _ in range(-(-number // self.count)):
            own = self.run_on_all(lambda: next(batches, None))
            for batch in self.gather(None if own is None else own.cpu()):
                if batch is not None:
                    yield batch

    def _raise(self, failure: Exception | None, summaries: list[tuple[bool, str] | None]) -> None:
        """Raise what stops this process, if anything.

        The main process raises the `UserError` of any process; every other exception is raised where it occurred.
        """
        failures = [summary for summary in summaries if summary is not None]
        if not failures:
            return
        if failure is not None and (self.is_main or not isinstance(failure, UserError)):
            raise failure
        is_user_error, text = failures[0]
        if self.is_main and is_user_error:
            raise UserError(text)
        raise StoppedByOtherProcess(2 if is_user_error else 1)


SINGLE_PROCESS = Processes()


@contextmanager
def torchrun_processes() -> Iterator[Processes]:
    """The processes that `torchrun` started; without it this one alone.

    They communicate through gloo, on any device. When one exits or does not answer for half an hour
    (`LDM_PROCESS_TIMEOUT` seconds), the others raise `LostProcessError`. `UserError` where the environment is not
    that of torchrun.
    """
    world_size = os.environ.get("WORLD_SIZE", "1")
    if not world_size.strip().isdigit():
        raise UserError(f"WORLD_SIZE={world_size}: not a number of processes", remedy="start with torchrun")
    if int(world_size) < 2:
        yield SINGLE_PROCESS
        return
    import torch.distributed as dist

    try:
        seconds = float(os.environ.get(TIMEOUT, _SECONDS))
        with _connection_errors():
            dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    except (ValueError, OverflowError) as error:
        raise UserError(f"WORLD_SIZE={world_size}, but: {error}", remedy="start with torchrun") from None
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def current_processes() -> Processes:
    """The processes of the process group that is set up, such as a training's; otherwise this one alone."""
    import torch.distributed as dist

    is_set_up = dist.is_available() and dist.is_initialized()
    return Processes(dist.get_rank(), dist.get_world_size()) if is_set_up else SINGLE_PROCESS


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _summary(failure: Exception | None) -> tuple[bool, str] | None:
    """(whether it is a `UserError`, its message)."""
    return None if failure is None else (isinstance(failure, UserError), str(failure))


@contextmanager
def _connection_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # gloo's exception for a closed connection and for a timeout
        raise LostProcessError("another process of this run ended or did not answer in time") from None
