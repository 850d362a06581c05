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
    """ids [rows], vectors float32 [rows, dim]."""

    ids: Sequence[str]
    vectors: NDArray[np.float32]


def check_vectors_path(path: Path) -> None:
    """Raise UsageError when the file's ending says no format that can be written."""
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(f"output {path}: the ending says the format, one of {', '.join(_WRITERS)}")


def write_vectors(path: Path, named: NamedVectors) -> None:
    """Write the file, wholly or not at all. Raises UsageError for its ending, VembedError when the disk refuses.

    .npz holds `ids` and `vectors`; .parquet a column of each; .safetensors the tensor `vectors` and the ids as JSON in
    its metadata; .npy the vectors alone, and beside it x.ids.jsonl the ids, one JSON text per line.
    """
    check_vectors_path(path)
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
        np.savez(file, ids=np.array(named.ids, dtype=np.str_), vectors=named.vectors)


def _write_parquet(path: Path, named: NamedVectors) -> None:
    flat = pa.array(named.vectors.reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, named.vectors.shape[1])
    pq.write_table(pa.table({"id": pa.array(list(named.ids), pa.string()), "vector": vectors}), path)


def _write_safetensors(path: Path, named: NamedVectors) -> None:
    metadata = {"ids": json.dumps(list(named.ids), ensure_ascii=False)}
    save_file({"vectors": torch.from_numpy(named.vectors)}, path, metadata=metadata)


_WRITERS: Mapping[str, Callable[[Path, NamedVectors], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
