"""Rows of a Parquet file, read from the file itself: what it holds now, whatever it held before.

Why not through `datasets`: it answers from a cache in the user's home whose key is the file's path and modification
time, so a file that was replaced by one of the same time gives its old rows; the cache keeps every version for ever;
and the home has to be writable.

A page of Parquet is decoded whole, and rows are wanted in random order. So a file is decoded once, when it is opened:
into memory while that takes little, else into a file without a name in the temporary folder, which is mapped and is
gone when the process ends, however it ends. Loader workers that are forked share it; those that are spawned decode the
file again, each within as much memory for all files of a data set. What happens to the file afterwards changes
nothing. A page that cannot be decoded refuses the file, and says which rows it was to give; a single cell that cannot
be (a text that is not UTF-8) makes its row a bad one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from vembed.data.readers.batch_store import BatchStore, MemoryLeft
from vembed.data.readers.source_file import FileIdentity
from vembed.data.readers.table_rows import Cells, TableRows
from vembed.errors import DataError
from vembed.utils.untrusted import library_errors

_BATCH_BYTES = 1 << 25
_BATCH_ROWS = 1024  # a page of few bytes may repeat a long value: only the number of rows bounds what a batch takes


def open_parquet(path: str, memory: MemoryLeft | None = None) -> TableRows:
    """The rows of a Parquet file. Raises DataError when it is none, is damaged, or has no rows."""
    table = ParquetTable(path, MemoryLeft() if memory is None else memory)
    return TableRows(table, path, _class_names(table.schema, path))


class ParquetTable:
    """A file's cells, decoded. Picklable: another process decodes the file again, and refuses it if it has changed."""

    def __init__(self, path: str, memory: MemoryLeft) -> None:
        self._path = path
        self._memory = memory
        self._identity = FileIdentity.of(path)
        self._batches, self.schema = _decode(path, memory)
        self._identity.check(path)
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.schema.names)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[Cells, int]:
        """The batch that holds the row, and the row's number in it."""
        batch = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._batches[batch], index - int(self._starts[batch])

    def __reduce__(self) -> tuple[Any, ...]:  # Any: pickle's own protocol
        return _decoded_again, (self._path, self._identity, self._memory)


def _decoded_again(path: str, identity: FileIdentity, memory: MemoryLeft) -> ParquetTable:
    identity.check(path)
    return ParquetTable(path, memory)


def _decode(path: str, memory: MemoryLeft) -> tuple[list[pyarrow.RecordBatch], pyarrow.Schema]:
    with library_errors(DataError, f"{path}: not a Parquet file, or a damaged one", or_too_large=True):
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
    with file, closing(BatchStore(path, memory)) as store:
        for batch in _batches(file, path):
            store.add(batch)
        batches = store.finish()
    found = sum(batch.num_rows for batch in batches)
    if found != num_rows:
        raise DataError(f"{path}: the file is damaged: it should hold {num_rows} rows, and holds {found}")
    if found == 0:
        raise DataError(f"{path}: the file is empty")
    return batches, schema


def _batches(file: pyarrow.parquet.ParquetFile, path: str) -> Iterator[pyarrow.RecordBatch]:
    num_rows, size = file.metadata.num_rows, _batch_rows(file, path)
    batches, first = file.iter_batches(size), 0
    while True:
        place = f"{path}: rows {first + 1} to {min(first + size, num_rows)}"
        with library_errors(DataError, f"{place} cannot be decoded: the file is damaged", or_too_large=True):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate()
        yield batch
        first += batch.num_rows


def _batch_rows(file: pyarrow.parquet.ParquetFile, path: str) -> int:
    """Rows to decode at once, by what the file says of its size."""
    with library_errors(DataError, f"{path}: the file is damaged", or_too_large=True):
        metadata = file.metadata
        num_bytes = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        fitting: int = _BATCH_BYTES * metadata.num_rows // max(1, num_bytes)
        return max(1, min(_BATCH_ROWS, fitting))


def _class_names(schema: pyarrow.Schema, path: str) -> Mapping[str, Sequence[str]]:
    """The names of the classes of each column that `datasets` wrote as a ClassLabel, from what it noted in the file."""
    with library_errors(
        DataError, f"{path}: what datasets noted of its columns (metadata 'huggingface') is damaged", or_too_large=True
    ):
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(text).get("info", {}).get("features") or {}
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
