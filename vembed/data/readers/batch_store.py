"""Record batches at hand in any order: in memory while they are few, else in a mapped file without a name."""

import shutil
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pyarrow

from vembed.errors import DataError
from vembed.utils.untrusted import library_errors

_MEMORY_BYTES = 1 << 28
_FREE_SHARE = 0.5  # of the temporary folder's free space, what a file may take


@dataclass
class MemoryLeft:
    """The bytes that may still be held in memory, for all files of a data set together.

    Picklable: another process, which decodes the files again, begins with all of them, again for all files together.
    """

    num_bytes: int = _MEMORY_BYTES

    def __post_init__(self) -> None:
        self._all = self.num_bytes

    def __reduce__(self) -> tuple[type["MemoryLeft"], tuple[int]]:
        return MemoryLeft, (self._all,)


class BatchStore:
    """Takes batches of one schema (`add`), then gives all of them (`finish`). path: what messages call their source."""

    def __init__(self, path: str, memory: MemoryLeft) -> None:
        self._path = path
        self._memory = memory
        self._held: list[pyarrow.RecordBatch] = []
        self._file: _BatchFile | None = None

    def add(self, batch: pyarrow.RecordBatch) -> None:
        """Take a batch. Raises DataError when the temporary folder has no room for it."""
        if self._file is not None:
            self._file.write(batch)
            return
        self._held.append(batch)
        self._memory.num_bytes -= batch.nbytes
        if self._memory.num_bytes < 0:
            self._memory.num_bytes += sum(held.nbytes for held in self._held)
            self._file = _BatchFile(self._path, batch.schema)
            for held in self._held:
                self._file.write(held)
            self._held.clear()

    def finish(self) -> list[pyarrow.RecordBatch]:
        """The batches, in order."""
        return self._held if self._file is None else self._file.read()

    def close(self) -> None:
        """Leave nothing behind but the batches that `finish` gave."""
        if self._file is not None:
            self._file.close()


class _BatchFile:
    """A file in the temporary folder that has its name only while it is written."""

    def __init__(self, path: str, schema: pyarrow.Schema) -> None:
        self._source = path
        with library_errors(DataError, f"{path}: needs a temporary folder, which TMPDIR names"):
            self._folder = Path(tempfile.mkdtemp(prefix="vembed-"))
        self._name = str(self._folder / "rows.arrow")
        self._room = shutil.disk_usage(self._folder).free * _FREE_SHARE
        with self._errors():
            self._sink = pyarrow.OSFile(self._name, "wb")
            self._writer = pyarrow.ipc.new_stream(
                self._sink, schema
            )  # a file's dictionaries may change, unlike a table's

    def write(self, batch: pyarrow.RecordBatch) -> None:
        with self._errors():
            self._writer.write_batch(batch)
            num_bytes = self._sink.tell()
        if num_bytes > self._room:
            raise DataError(
                f"{self._source}: takes over {num_bytes / 1e9:.1f} GB when it is decoded, half of what is free in"
                f" {self._folder.parent}; name a folder with more room in TMPDIR"
            )

    def read(self) -> list[pyarrow.RecordBatch]:
        with self._errors():
            self._writer.close()
            self._sink.close()
            return list(pyarrow.ipc.open_stream(pyarrow.memory_map(self._name)))

    def close(self) -> None:
        """Take the file's name away; what is mapped of it stays."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _errors(self) -> AbstractContextManager[None]:
        return library_errors(
            DataError, f"{self._source}: cannot be decoded into the temporary folder {self._folder.parent} (TMPDIR)"
        )
