"""Images in columns of Parquet files, and of the Arrow files that `datasets` saves."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from harl_fast.files import UnusualFileError
from preprocess.images.members import check_size

ROWS_AT_ONCE = 16
"""Rows of a Parquet file that are decoded together, at most: what a worker gets as one task."""
_BYTES_AT_ONCE = 32 << 20
"""How much they may hold together by what the file states; one may hold more."""


Column = tuple[str, ...]
"""The name of a column, then those that lead into its structs, such as ``("image", "bytes")``: a
name may have dots in it, and be ``image.bytes`` itself."""


class Cell(NamedTuple):
    """One image's bytes in a table: a Parquet file, or an Arrow file (the stream format)."""

    path: Path
    """An Arrow file by its suffix, `is_arrow`."""
    column: Column
    """Of the bytes."""
    group: int
    """The row group, of an Arrow file the record batch."""
    row: int
    """Within its group."""
    size: int
    """Mean of its group."""

    @property
    def name(self) -> str:
        group = "batch" if is_arrow(self.path) else "group"
        return f"{self.path}, row {self.row} of {group} {self.group}"

    def open(self, limit: int) -> BinaryIO:
        import pyarrow as pa  # only where tables are read

        find: Any = _chunk if is_arrow(self.path) else _rows
        try:
            value = find(self.path, self.column, self.group)[self.row]
            if not value.is_valid:
                raise UnusualFileError(
                    "the table holds no bytes of it, at most a path: write the images into it"
                )
            buffer = value.as_buffer()
        except (pa.ArrowException, IndexError) as error:
            raise UnusualFileError(f"damaged: {error}") from error
        check_size(buffer.size, limit)
        return io.BytesIO(buffer.to_pybytes())


def is_arrow(path: Path) -> bool:
    """Return whether a table is an Arrow file, by its suffix; else it is Parquet."""
    return path.suffix == ".arrow"


class _Rows:
    """The values of one row group's column, read forward a few rows at a time."""

    def __init__(self, path: Path, column: Column, group: int) -> None:
        self._batches = functools.partial(_batches, path, column, group)
        self._left: Iterator[Any] | None = None
        self._batch: Any = ()
        self._start = self._end = 0

    def __getitem__(self, row: int) -> Any:
        """Return a row's binary scalar; rows in rising order take one pass over the group."""
        if self._left is None or row < self._start:
            self._left, self._start, self._end = self._batches(), 0, 0
        while row >= self._end:
            batch = next(self._left, None)
            if batch is None:
                raise IndexError(f"the row group ends at row {self._end}")
            self._batch, self._start = batch, self._end
            self._end += len(batch)
        return self._batch[row - self._start]


_rows = functools.lru_cache(1)(_Rows)
"""A worker keeps its place in the group that it is reading."""


def _batches(path: Path, column: Column, group: int) -> Iterator[Any]:
    import pyarrow.parquet as pq

    # A buffer, lest the whole group be read before its first row. Mapped, since each worker passes
    # over the others' rows, too: for 58 KB images 7 us per row, and 15 us if they are copied.
    dotted = ".".join(column)  # as Parquet calls both
    with pq.ParquetFile(path, buffer_size=1 << 20, memory_map=True) as file:
        stated = file.metadata.row_group(group)
        columns = map(stated.column, range(stated.num_columns))
        size = next(
            each.total_uncompressed_size for each in columns if each.path_in_schema == dotted
        )
        fitting = _BYTES_AT_ONCE * stated.num_rows // max(1, size)
        rows = min(ROWS_AT_ONCE, max(1, fitting))
        for batch in file.iter_batches(rows, row_groups=[group], columns=[dotted]):
            yield leaf(batch.column(column[0]), column)


@functools.lru_cache(4)
def _chunk(path: Path, column: Column, group: int) -> Any:
    batch = arrow_table(path).column(column[0]).chunk(group)
    return leaf(batch, column)


@functools.lru_cache(1)
def arrow_table(path: Path) -> Any:
    """Return an Arrow file's table, which stays on disk until its rows are asked for."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as stream, pa.ipc.open_stream(stream) as reader:
        return reader.read_all()


def leaf(array: Any, column: Column) -> Any:
    """Return what a column means of the array that its first name does."""
    import pyarrow.compute as pc

    return pc.struct_field(array, list(column[1:])) if column[1:] else array
