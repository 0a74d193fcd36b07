"""Reads single images from parquet files, whose rows are compressed in groups."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

# Rows that are decompressed at once.  Together with the buffer, this bounds the memory of a worker, however large the
# row groups of the file are.
_BATCH = 32
_BUFFER = 1 << 20  # bytes


class Row(NamedTuple):
    """An image in a row of a parquet file.  It has the attributes of a `Slice`, for fingerprints and messages."""

    path: str
    column: str
    row: int  # from 0

    @property
    def name(self) -> str:
        """In messages."""
        return f"row {self.row}"

    @property
    def offset(self) -> int:
        """Which image of the file it is."""
        return self.row

    @property
    def size(self) -> int:
        """Unknown without reading it: the size of the whole file counts."""
        return -1


def read_row(image: Row) -> bytes:
    """The bytes of an image file.  Raises ValueError if the row has none, and any exception of pyarrow.

    Reading rows in the order of the file decompresses each of them once; going back starts at their row group again.
    """
    value = _open_cached(image.path, image.column).read(image.row)
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            advice = "write the data set again with its images embedded, or use its folder of images"
            raise ValueError(f"the row has only the path of another file, {value['path']}, and no image; {advice}")
        value = value["bytes"]
    if value is None:
        raise ValueError("the row has no image")
    assert isinstance(value, bytes)
    return value


@lru_cache(maxsize=4)
def _open_cached(path: str, column: str) -> "_Column":
    return _Column(path, column)


class _Column:
    """A column of one file, and the position in it: the batch of rows that was read last."""

    def __init__(self, path: str, column: str) -> None:
        import pyarrow.parquet

        self._file = pyarrow.parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
        )
        self._column = column
        self._group_starts = [0]
        for group in range(self._file.num_row_groups):
            self._group_starts.append(self._group_starts[-1] + self._file.metadata.row_group(group).num_rows)
        self._batches: Iterator[Any] = iter(())
        self._values: Any = ()
        self._start = 0  # row of its first value
        self._end = 0  # row after the last one of the row group

    def read(self, row: int) -> Any:
        """The value in a row, as a Python object."""
        try:
            if not self._start <= row < self._end:
                group = next(i for i, start in enumerate(self._group_starts[1:]) if row < start)
                self._start, self._end = self._group_starts[group : group + 2]
                self._values = ()
                # Worker processes use one core each.
                self._batches = self._file.iter_batches(_BATCH, [group], columns=[self._column], use_threads=False)
            while row >= self._start + len(self._values):
                self._start += len(self._values)
                self._values = next(self._batches).column(0)
        except BaseException:
            self._end = self._start  # the position is unknown now
            raise
        return self._values[row - self._start].as_py()
