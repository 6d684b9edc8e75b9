"""Reading a parquet file with a limit of memory: a few kilobytes of one can unpack to gigabytes.

Values are compressed, and a dictionary stores equal ones once, so neither the size of the file nor what its header
declares says what reading takes. Needs pyarrow: the extra `datasets`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm.runtime.errors import UserError
from ldm.runtime.files import check_regular
from ldm.runtime.memory import bounded_memory
from ldm.runtime.text import printable

_MEMORY = 384 * 2**20  # bytes that reading may add to this process, which then stays below 1 GiB
_ROW_GROUP_BYTES = 4 * 2**30  # of one row group, as its header declares it
_RENEWED = 256  # rows or more after which the memory is counted anew


class ParquetReader:
    """An open parquet file: its `schema`, and its rows."""

    def __init__(self, file: Any, path: Path, renew: Any) -> None:
        self._file, self._path, self._renew = file, path, renew
        self.schema, self.num_rows = file.schema_arrow, file.metadata.num_rows

    def rows(self, columns: Sequence[str], batch_size: int = 1) -> Iterator[dict[str, Any]]:
        """Each row as {column: value}; only these columns are unpacked, so many rows at a time."""
        for group in range(self._file.metadata.num_row_groups):
            size = self._file.metadata.row_group(group).total_byte_size
            if size > _ROW_GROUP_BYTES:
                problem = f"{printable(self._path)}: row group {group} has {size} bytes"
                raise UserError(problem, remedy="write smaller row groups")
        batches = self._file.iter_batches(batch_size=batch_size, columns=list(columns), use_threads=False)
        for number, batch in enumerate(batches):
            if number % max(1, _RENEWED // batch_size) == 0:
                self._renew()
            yield from batch.to_pylist()


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetReader]:
    """Open a file; `UserError` where pyarrow is missing, the file is not whole, or reading takes too much memory."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{printable(path)}: parquet needs pyarrow: pip install 'guided-latents[datasets]'") from None
    check_regular(path)
    pool = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # others take more than was asked for, and keep it
    try:
        with (
            bounded_memory(_MEMORY) as renew,
            parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file,
        ):
            yield ParquetReader(file, path, renew)
    except MemoryError:
        problem = f"reading it takes more than {_MEMORY // 2**20} MiB of memory"
        remedy = "write it with smaller pages, or as image files"
        raise UserError(f"{printable(path)}: {problem}", remedy=remedy) from None
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of a disk that is full
            raise
        raise UserError(f"{printable(path)}: not a whole parquet file ({printable(error, 120)})") from None
    finally:
        pyarrow.set_memory_pool(pool)
