"""Embeddings with their ids in a file: .npy, .npz, .parquet or .safetensors."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from vembed.errors import UsageError, VembedError
from vembed.utils.files import atomic_file


@dataclass(frozen=True)
class NamedVectors:
    """ids [rows], vectors float32 [rows, dim].

    Of a model with a vector per token: vectors [tokens of all rows, dim], and counts int64 [rows] of them in each row.
    """

    ids: Sequence[str]
    vectors: NDArray[np.float32]
    counts: NDArray[np.int64] | None = None


def check_vectors_path(path: Path, *, per_token: bool = False) -> None:
    """Raise UsageError when the file's ending says no format that can be written (with a vector per token)."""
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(f"output {path}: the ending says the format, one of {', '.join(_WRITERS)}")
    if per_token and path.suffix.lower() == ".npy":
        able = ", ".join(ending for ending in _WRITERS if ending != ".npy")
        raise UsageError(
            f"output {path}: .npy holds one table of one vector per item; this model has a vector per token: use {able}"
        )


def write_vectors(path: Path, named: NamedVectors) -> None:
    """Write the file, wholly or not at all. Raises UsageError for its ending, VembedError when the disk refuses.

    .npz holds `ids` and `vectors`; .parquet a column of each; .safetensors the tensor `vectors` and the ids as JSON in
    its metadata; .npy the vectors alone, and beside it x.ids.jsonl the ids, one JSON text per line. With a vector per
    token, .npz and .safetensors hold `counts` too, and .parquet has a list of vectors in each row of `vectors`.
    """
    check_vectors_path(path, per_token=named.counts is not None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as unfinished:
            _WRITERS[path.suffix.lower()](unfinished, named)
        if path.suffix.lower() == ".npy":
            with atomic_file(ids_path(path)) as unfinished:
                lines = [json.dumps(name, ensure_ascii=False) + "\n" for name in named.ids]
                unfinished.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise VembedError(f"{path} could not be written: {error}") from error


def ids_path(path: Path) -> Path:
    """The file of ids beside an .npy file.

    >>> ids_path(Path("out/vectors.npy")).name
    'vectors.ids.jsonl'
    """
    return path.with_suffix(".ids.jsonl")


def _write_npy(path: Path, named: NamedVectors) -> None:
    with path.open("wb") as file:
        np.save(file, named.vectors)


def _write_npz(path: Path, named: NamedVectors) -> None:
    with path.open("wb") as file:
        ids = np.array(named.ids, dtype=np.str_)
        if named.counts is None:
            np.savez(file, ids=ids, vectors=named.vectors)
        else:
            np.savez(file, ids=ids, vectors=named.vectors, counts=named.counts)


def _write_parquet(path: Path, named: NamedVectors) -> None:
    flat = pa.array(named.vectors.reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, named.vectors.shape[1])
    column = "vector"
    if named.counts is not None:
        ends = pa.array(np.concatenate([[0], named.counts.cumsum()]), pa.int64())
        column, vectors = "vectors", pa.LargeListArray.from_arrays(ends, vectors)
    pq.write_table(pa.table({"id": pa.array(list(named.ids), pa.string()), column: vectors}), path)


def _write_safetensors(path: Path, named: NamedVectors) -> None:
    metadata = {"ids": json.dumps(list(named.ids), ensure_ascii=False)}
    tensors = {"vectors": torch.from_numpy(named.vectors)}
    if named.counts is not None:
        tensors["counts"] = torch.from_numpy(named.counts)
    save_file(tensors, path, metadata=metadata)


_WRITERS: Mapping[str, Callable[[Path, NamedVectors], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
