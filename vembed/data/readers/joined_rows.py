"""The rows of several Parquet files one after another, as one data set."""

from collections.abc import Sequence

import numpy as np

from vembed.data.readers.batch_store import MemoryLeft
from vembed.data.readers.parquet_rows import open_parquet
from vembed.data.readers.table_rows import TableRow, TableRows


class JoinedRows:
    """`len`, `[i] -> row`, `origin(i) -> "train-00001-of-00002.parquet:17"`: file, and row in it from 1."""

    lists_in_text = False

    def __init__(self, parts: Sequence[TableRows]) -> None:
        self.columns = tuple(dict.fromkeys(name for part in parts for name in part.columns))
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> TableRow:
        part, number = self._place(index)
        return part[number]

    def origin(self, index: int) -> str:
        """File and row number from 1."""
        part, number = self._place(index)
        return part.origin(number)

    def number(self, index: int) -> int:
        """The row's number from 1, through all files."""
        return index + 1

    def _place(self, index: int) -> tuple[TableRows, int]:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._parts[part], index - int(self._starts[part])


def open_parquet_files(paths: Sequence[str]) -> JoinedRows:
    """The rows of the files, in their order. Raises DataError when one cannot be read, or has no rows."""
    memory = MemoryLeft()
    return JoinedRows([open_parquet(path, memory) for path in paths])
