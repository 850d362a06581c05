"""Vectors by key in a folder that only grows: one vector per row, or as many as the row has tokens.

    folder/shard-000000-5f0c9a1e/    the rows of one `append`
        keys.npy       int64 [rows]
        vectors.npy    [rows, dim], or [tokens of all rows, dim]
        counts.npy     int64 [rows]: tokens of each row; only where rows have tokens
        checks.npy     int64 [rows]: a checksum of each row with its key, looked at when the row is first read

A shard is there wholly or not at all, so that work that was cut short goes on where it stopped. Vectors stay on disk
and are mapped into memory where they are read. Several processes may append to one folder: where two of them wrote the
same key, the first shard counts. What a writer that was killed left half done is never read, and goes when a later
one begins.
"""

import logging
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vembed.errors import CheckpointError
from vembed.types import Embeddings
from vembed.utils.files import atomic_folder, remove_abandoned
from vembed.utils.untrusted import library_errors

Keys = Sequence[int] | NDArray[np.int64]

_log = logging.getLogger(__name__)
_NO_KEYS = np.zeros(0, np.int64)
_SHARDS = "shard-*"
_CHECKS = "checks.npy"
_REMEDY = "Delete it, and it is made anew"


@dataclass(frozen=True)
class _Shard:
    """vectors: [rows, dim], or [tokens of all rows, dim] with the first token and the number of tokens of each row.

    checks: int64 [rows]. is_checked: bool [rows], of the rows that were found to be what was written.
    """

    keys: NDArray[np.int64]
    vectors: NDArray[Any]  # Any: of the dtype that was appended
    starts: NDArray[np.int64] | None
    counts: NDArray[np.int64] | None
    checks: NDArray[np.int64]
    is_checked: NDArray[np.bool_]
    folder: Path

    def row(self, number: int) -> NDArray[Any]:
        """The vector of a row, or those of its tokens."""
        if self.counts is None or self.starts is None:
            return self.vectors[number : number + 1]
        return self.vectors[self.starts[number] : self.starts[number] + self.counts[number]]

    def check(self, rows: NDArray[np.int64]) -> None:
        """Raise CheckpointError unless these rows are what was written. Each is looked at once."""
        for number in np.unique(rows[~self.is_checked[rows]]).tolist():
            if _check_of(int(self.keys[number]), self.row(number)) != self.checks[number]:
                raise CheckpointError(f"{self.folder} is damaged: a row of it is not what was written. {_REMEDY}")
        self.is_checked[rows] = True


class VectorStore:
    """The rows in a folder, which need not exist. Raises CheckpointError when a shard is damaged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[_Shard] = []
        self._keys = _NO_KEYS  # of all shards, ascending; beside each its shard and its row there
        self._shard_numbers = _NO_KEYS
        self._row_numbers = _NO_KEYS
        self._is_tidy = False
        shards = sorted(folder.glob(_SHARDS)) if folder.is_dir() else []
        checked = [path for path in shards if (path / _CHECKS).is_file()]
        if len(checked) < len(shards):
            _log.warning(
                "%s: %d shards have no checksums, as those of earlier versions, and are not read; what is needed"
                " of them is made anew",
                folder,
                len(shards) - len(checked),
            )
        self._add([_open(path) for path in checked])

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def dim(self) -> int | None:
        """Width of a vector; None while there is none."""
        return self._shards[0].vectors.shape[1] if self._shards else None

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Bool [keys]: True if the store has a row for the key."""
        wanted = np.asarray(keys, np.int64)
        if len(self) == 0:
            return np.zeros(len(wanted), bool)
        return np.asarray(self._keys[self._positions(wanted)] == wanted)

    def append(self, keys: Keys, embeddings: Embeddings) -> None:
        """Add rows under their keys; when this returns they are on the disk.

        Raises CheckpointError when the disk refuses, or for vectors of another kind than those that are here.
        """
        folder = self._folder / f"shard-{len(self._shards):06d}-{uuid.uuid4().hex[:8]}"
        shard = _as_shard(np.asarray(keys, np.int64), embeddings, folder)
        self._refuse_other_kind(shard)
        if not self._is_tidy:
            remove_abandoned(self._folder, _SHARDS)
            self._is_tidy = True
        with atomic_folder(folder) as new:
            np.save(new / "keys.npy", shard.keys)
            np.save(new / _CHECKS, shard.checks)
            np.save(new / "vectors.npy", shard.vectors)
            if shard.counts is not None:
                np.save(new / "counts.npy", shard.counts)
        self._add([_open(folder)])

    def read(self, keys: Keys) -> Embeddings:
        """The rows of these keys, in their order, in the dtype that was appended (bfloat16 as float32).

        Raises CheckpointError for a key without a row (`contains` tells), or for a row that is damaged.
        """
        wanted = np.asarray(keys, np.int64)
        absent = int((~self.contains(wanted)).sum())
        if absent:
            raise CheckpointError(f"{self._folder} lacks {absent} of the {len(wanted)} rows that were asked for")
        assert self._shards, "an empty store has been asked for no rows"
        positions = self._positions(wanted)
        shards, rows = self._shard_numbers[positions], self._row_numbers[positions]
        for number in np.unique(shards):
            self._shards[number].check(rows[shards == number])
        if self._shards[0].counts is None:
            return Embeddings(torch.from_numpy(self._single_rows(shards, rows)))
        return self._token_rows(shards, rows)

    def _single_rows(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
        first = self._shards[0].vectors
        vectors = np.empty((len(rows), first.shape[1]), first.dtype)
        for number in np.unique(shards):
            here = shards == number
            vectors[here] = self._shards[number].vectors[rows[here]]
        return vectors

    def _token_rows(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> Embeddings:
        """Padded at the end to the most tokens."""
        counts = np.empty(len(rows), np.int64)
        for number in np.unique(shards):
            counts[shards == number] = _counts(self._shards[number])[rows[shards == number]]
        mask = np.arange(counts.max(initial=0)) < counts[:, None]
        first = self._shards[0].vectors
        vectors = np.zeros((*mask.shape, first.shape[1]), first.dtype)
        for number in np.unique(shards):
            here = shards == number
            vectors[here[:, None] & mask] = _tokens(self._shards[number], rows[here])
        return Embeddings(torch.from_numpy(vectors), torch.from_numpy(mask))

    def _positions(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Int64 [keys]: the position among all keys, sorted, where each stands or would stand; at most the last."""
        return np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)

    def _add(self, shards: Sequence[_Shard]) -> None:
        for shard in shards:
            self._refuse_other_kind(shard)
            self._shards.append(shard)
        if not shards:
            return
        first = len(self._shards) - len(shards)
        numbers = [np.full(len(shard.keys), number) for number, shard in enumerate(shards, first)]
        rows = [np.arange(len(shard.keys)) for shard in shards]
        keys = np.concatenate([self._keys, *(shard.keys for shard in shards)])
        self._keys, chosen = np.unique(keys, return_index=True)  # of equal keys the first
        self._shard_numbers = np.concatenate([self._shard_numbers, *numbers])[chosen]
        self._row_numbers = np.concatenate([self._row_numbers, *rows])[chosen]

    def _refuse_other_kind(self, shard: _Shard) -> None:
        kinds = [_kind(one) for one in (*self._shards[:1], shard)]
        if kinds[0] != kinds[-1]:
            raise CheckpointError(f"{self._folder} holds {kinds[0]}; {kinds[-1]} cannot stand beside them")


def _kind(shard: _Shard) -> str:
    """The kind of vectors that a shard holds, in words."""
    per = "row" if shard.counts is None else "token"
    return f"{shard.vectors.dtype} vectors of {shard.vectors.shape[1]} numbers, one per {per}"


def _as_shard(keys: NDArray[np.int64], embeddings: Embeddings, folder: Path) -> _Shard:
    vectors = embeddings.vectors.detach().cpu()
    vectors = vectors.float() if vectors.dtype == torch.bfloat16 else vectors  # numpy has no bfloat16
    assert len(keys) == len(vectors), "each row has a key"
    if vectors.ndim == 2:
        return _shard(keys, vectors.numpy(), None, folder)
    mask = torch.ones(vectors.shape[:2], dtype=torch.bool) if embeddings.mask is None else embeddings.mask.cpu()
    return _shard(keys, vectors[mask].numpy(), mask.sum(dim=1).numpy(), folder)


def _shard(
    keys: NDArray[np.int64],
    vectors: NDArray[Any],
    counts: NDArray[np.int64] | None,
    folder: Path,
    checks: NDArray[np.int64] | None = None,
) -> _Shard:
    """The shard of these arrays. checks: those that were read with them; None for new rows, of which they are made."""
    starts = None if counts is None else counts.cumsum() - counts
    shard = _Shard(keys, vectors, starts, counts, np.zeros(0, np.int64), np.zeros(len(keys), bool), folder)
    if checks is None:
        checks = np.array([_check_of(key, shard.row(row)) for row, key in enumerate(keys.tolist())], np.int64)
    return replace(shard, checks=checks)


def _check_of(key: int, vectors: NDArray[Any]) -> int:
    """A checksum of a row: of its key, the kind, the number and the bytes of its vectors."""
    kind = zlib.crc32(f"{key} {vectors.dtype} {vectors.shape}".encode())
    return zlib.crc32(np.ascontiguousarray(vectors).view(np.uint8).data, kind) if vectors.size else kind


def _open(folder: Path) -> _Shard:
    """The shard in a folder, its vectors mapped."""
    try:
        with library_errors(CheckpointError, f"{folder} is damaged", or_too_large=True):
            return _read(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {_REMEDY}") from error


def _read(folder: Path) -> _Shard:
    """As `_open`; raises ValueError for files that are not of one shard."""
    keys, checks = np.load(folder / "keys.npy"), np.load(folder / _CHECKS)
    vectors = _mapped(folder / "vectors.npy")
    counts = np.load(folder / "counts.npy") if (folder / "counts.npy").exists() else None
    lists = [array for array in (keys, checks, counts) if array is not None]
    fits = all(array.dtype == np.int64 and array.shape == (len(keys),) for array in lists) and vectors.ndim == 2
    if not fits or len(vectors) != (len(keys) if counts is None else counts.sum()):
        raise ValueError("its files are not of one shard")
    if counts is not None and counts.min(initial=0) < 0:
        raise ValueError("a number of tokens is negative")
    return _shard(keys, vectors, counts, folder, checks)


def _mapped(path: Path) -> NDArray[Any]:
    """The array in a file, mapped into memory; one without numbers cannot be."""
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except ValueError:
        return np.asarray(np.load(path))


def _counts(shard: _Shard) -> NDArray[np.int64]:
    assert shard.counts is not None, "rows have tokens"
    return shard.counts


def _tokens(shard: _Shard, rows: NDArray[np.int64]) -> NDArray[Any]:
    """The tokens of these rows one after the other, [tokens, dim]."""
    assert shard.starts is not None, "rows have tokens"
    counts = _counts(shard)[rows]
    ends = counts.cumsum()
    steps = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    return np.asarray(shard.vectors[np.repeat(shard.starts[rows], counts) + steps])
