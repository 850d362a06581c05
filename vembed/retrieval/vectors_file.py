"""Embeddings with their ids in a file: .npy, .npz, .parquet or .safetensors."""

import json
import os
import shutil
import tempfile
import zipfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vembed.errors import UsageError
from vembed.utils.files import atomic_file, disk_errors
from vembed.utils.untrusted import is_folder, printable

_COPIED_AT_ONCE = 1 << 24  # bytes


@dataclass(frozen=True)
class NamedVectors:
    """ids [rows], vectors float32 [rows, dim].

    Of a model with a vector per token: vectors [tokens of all rows, dim], and counts int64 [rows] of them in each row.
    """

    ids: Sequence[str]
    vectors: NDArray[np.float32]
    counts: NDArray[np.int64] | None = None


def check_vectors_path(path: Path, *, per_token: bool = False) -> None:
    """Raise UsageError for a name that no file can have, and an ending of no format that can be written.

    per_token: with a vector per token.
    """
    try:
        path.lstat()
    except ValueError as error:
        raise UsageError(f"output {printable(str(path))}: no file can have this name: {error}") from error
    except OSError:  # such as a folder that may not be looked into, which is told when the file is to be written
        pass
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(f"output {path}: the ending says the format, one of {', '.join(_WRITERS)}")
    if per_token and path.suffix.lower() == ".npy":
        able = ", ".join(ending for ending in _WRITERS if ending != ".npy")
        raise UsageError(
            f"output {path}: .npy holds one table of one vector per item; this model has a vector per token: use {able}"
        )


@contextmanager
def open_vectors(path: Path, *, per_token: bool = False) -> Iterator["VectorsWriter"]:
    """A writer of the file, which is there, complete, when the block ends, and unchanged when it fails.

    .npz holds `ids` and `vectors`; .parquet a column of each; .safetensors the tensor `vectors` and the ids as JSON in
    its metadata; .npy the vectors alone, and beside it x.ids.jsonl the ids, one JSON text per line. With a vector per
    token, .npz and .safetensors hold `counts` too, and .parquet has a list of vectors in each row of `vectors`.

    Vectors go to a file without a name in the same folder first: in most formats their number stands before them, and
    is known at the end. So what is held in memory is the ids. Raises UsageError for the ending or an output that is a
    folder, CheckpointError when the disk refuses: before there is any vector, where that shows so early.
    """
    check_vectors_path(path, per_token=per_token)
    if is_folder(str(path)):
        raise UsageError(f"output {path}: is a folder; name a file in it")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        spool = tempfile.TemporaryFile(dir=path.parent, prefix=".vembed_")  # noqa: SIM115 (closed below)
    with spool:
        writer = VectorsWriter(spool, path, per_token=per_token)
        yield writer
        writer.write()


class VectorsWriter:
    """Takes vectors with their ids, some at a time."""

    def __init__(self, spool: IO[bytes], path: Path, *, per_token: bool) -> None:
        self._spool = spool
        self._path = path
        self._per_token = per_token
        self._ids: list[str] = []
        self._ends = array("q", [0])  # of each row's vectors among all
        self._dim = 0

    @property
    def num_rows(self) -> int:
        """Rows so far."""
        return len(self._ids)

    @property
    def shape(self) -> tuple[int, int]:
        """Vectors so far, and the numbers of each."""
        return self._ends[-1], self._dim

    def add(self, named: NamedVectors) -> None:
        """Append rows. Raises CheckpointError when the disk refuses."""
        counts = [1] * len(named.ids) if named.counts is None else named.counts.tolist()
        assert len(counts) == len(named.ids)
        assert sum(counts) == len(named.vectors)
        if named.ids:
            self._dim = named.vectors.shape[1]
        with disk_errors(self._path):
            self._spool.seek(0, os.SEEK_END)
            self._spool.write(np.ascontiguousarray(named.vectors, dtype="<f4").data)
        self._ids += named.ids
        for count in counts:
            self._ends.append(self._ends[-1] + count)

    def vectors_of(self, row: int) -> NDArray[np.float32]:
        """The vectors of a row that was added, [vectors, dim]."""
        first, last = self._ends[row], self._ends[row + 1]
        with disk_errors(self._path):
            return self._read(first, last)

    def write(self) -> None:
        """Write the file of all rows. Raises CheckpointError when the disk refuses."""
        with atomic_file(self._path) as unfinished:
            _WRITERS[self._path.suffix.lower()](unfinished, self)
        if self._path.suffix.lower() == ".npy":
            with atomic_file(ids_path(self._path)) as unfinished:
                lines = [json.dumps(name, ensure_ascii=False) + "\n" for name in self._ids]
                unfinished.write_text("".join(lines), encoding="utf-8")

    @property
    def ids(self) -> Sequence[str]:
        """The ids of all rows."""
        return self._ids

    @property
    def counts(self) -> NDArray[np.int64] | None:
        """Vectors of each row, int64 [rows], of a model with a vector per token."""
        return self._counts_of(0, self.num_rows)

    def copy_vectors(self, file: IO[bytes]) -> None:
        """Write the numbers of all vectors into `file`, in order, float32 and little-endian."""
        self._spool.seek(0)
        shutil.copyfileobj(self._spool, file, _COPIED_AT_ONCE)

    def tables(self) -> Iterator[NamedVectors]:
        """All rows in order, about `_COPIED_AT_ONCE` bytes of vectors at a time."""
        first = 0
        while first < self.num_rows:
            last = first + 1
            most = self._ends[first] + _COPIED_AT_ONCE // (4 * max(1, self._dim))
            while last < self.num_rows and self._ends[last + 1] <= most:
                last += 1
            vectors = self._read(self._ends[first], self._ends[last])
            yield NamedVectors(self._ids[first:last], vectors, self._counts_of(first, last))
            first = last

    def _counts_of(self, first: int, last: int) -> NDArray[np.int64] | None:
        if not self._per_token:
            return None
        ends = np.array(self._ends[first : last + 1], dtype=np.int64)
        return ends[1:] - ends[:-1]

    def _read(self, first: int, last: int) -> NDArray[np.float32]:
        """Vectors by their numbers among all, [vectors, dim]."""
        self._spool.seek(4 * first * self._dim)
        data = self._spool.read(4 * (last - first) * self._dim)
        return np.frombuffer(data, "<f4").reshape(last - first, self._dim)


def written_paths(path: Path) -> list[Path]:
    """The files that are written or taken away for this one: itself, its ids, and its list of what was left out.

    >>> [one.name for one in written_paths(Path("out/vectors.npy"))]
    ['vectors.npy', 'vectors.ids.jsonl', 'vectors.bad_samples.jsonl']
    """
    return [path, *([ids_path(path)] if path.suffix.lower() == ".npy" else []), bad_samples_path(path)]


def ids_path(path: Path) -> Path:
    """The file of ids beside an .npy file.

    >>> ids_path(Path("out/vectors.npy")).name
    'vectors.ids.jsonl'
    """
    return path.with_suffix(".ids.jsonl")


def bad_samples_path(path: Path) -> Path:
    """The list of what was left out, beside a file of vectors.

    >>> bad_samples_path(Path("out/vectors.npz")).name
    'vectors.bad_samples.jsonl'
    """
    return path.with_suffix(".bad_samples.jsonl")


def _write_npy(path: Path, writer: VectorsWriter) -> None:
    with path.open("wb") as file:
        _write_array(file, writer)


def _write_npz(path: Path, writer: VectorsWriter) -> None:
    arrays: dict[str, NDArray[Any]] = {"ids": np.array(writer.ids, dtype=np.str_)}
    if writer.counts is not None:
        arrays["counts"] = writer.counts
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("vectors.npy", "w", force_zip64=True) as file:
            _write_array(file, writer)


def _write_array(file: IO[bytes], writer: VectorsWriter) -> None:
    """The vectors as numpy saves an array."""
    header = {"descr": "<f4", "fortran_order": False, "shape": writer.shape}
    np.lib.format.write_array_header_1_0(file, header)
    writer.copy_vectors(file)


def _write_parquet(path: Path, writer: VectorsWriter) -> None:
    vectors = pa.list_(pa.float32(), writer.shape[1])
    column = pa.field("vector", vectors) if writer.counts is None else pa.field("vectors", pa.large_list(vectors))
    schema = pa.schema([pa.field("id", pa.string()), column])
    with pq.ParquetWriter(path, schema) as file:
        for named in writer.tables():
            file.write_table(pa.table([pa.array(list(named.ids), pa.string()), _column(named)], schema=schema))


def _column(named: NamedVectors) -> Any:  # Any: pyarrow is untyped here
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(named.vectors.reshape(-1)), named.vectors.shape[1])
    if named.counts is None:
        return vectors
    ends = pa.array(np.concatenate([[0], named.counts.cumsum()]), pa.int64())
    return pa.LargeListArray.from_arrays(ends, vectors)


def _write_safetensors(path: Path, writer: VectorsWriter) -> None:
    """A number of bytes, that many of JSON which say where each tensor lies, and the tensors."""
    num_vectors, dim = writer.shape
    stop = 4 * num_vectors * dim
    header: dict[str, object] = {
        "__metadata__": {"ids": json.dumps(list(writer.ids), ensure_ascii=False)},
        "vectors": {"dtype": "F32", "shape": [num_vectors, dim], "data_offsets": [0, stop]},
    }
    counts = writer.counts
    if counts is not None:
        offsets = [stop, stop + counts.nbytes]
        header["counts"] = {"dtype": "I64", "shape": [len(counts)], "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        writer.copy_vectors(file)
        if counts is not None:
            file.write(counts.astype("<i8").tobytes())


_WRITERS: Mapping[str, Callable[[Path, VectorsWriter], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
