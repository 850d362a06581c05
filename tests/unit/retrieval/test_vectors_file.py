"""Vectors and ids come back as they went in, in every format."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from vembed.errors import UsageError, VembedError
from vembed.retrieval.vectors_file import NamedVectors, check_vectors_path, open_vectors

NAMED = NamedVectors(["a/b.png", "7", "line\nbreak 猫"], np.arange(12, dtype=np.float32).reshape(3, 4))


def write_vectors(path, named):
    with open_vectors(path, per_token=named.counts is not None) as writer:
        writer.add(named)


def read_npy(path):
    ids = [json.loads(line) for line in path.with_suffix(".ids.jsonl").read_text(encoding="utf-8").splitlines()]
    return ids, np.load(path)


def read_npz(path):
    with np.load(path) as arrays:
        return arrays["ids"].tolist(), arrays["vectors"]


def read_parquet(path):
    table = pq.read_table(path)
    return table["id"].to_pylist(), np.stack(table["vector"].to_numpy())


def read_safetensors(path):
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["ids"]), file.get_tensor("vectors")


@pytest.mark.parametrize("read", [read_npy, read_npz, read_parquet, read_safetensors])
def test_vectors_and_ids_come_back(tmp_path, read):
    path = tmp_path / "new folder" / f"out.{read.__name__.removeprefix('read_')}"
    write_vectors(path, NAMED)
    ids, vectors = read(path)
    assert ids == list(NAMED.ids)
    np.testing.assert_array_equal(vectors, NAMED.vectors)
    assert vectors.dtype == np.float32
    assert len(list(path.parent.iterdir())) == (2 if path.suffix == ".npy" else 1)


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"one of \.npy, \.npz, \.parquet, \.safetensors"):
        check_vectors_path(tmp_path / "out.txt")
    with pytest.raises(UsageError):
        write_vectors(tmp_path / "out", NAMED)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VembedError, match="could not be written"):
        write_vectors(tmp_path / "file" / "out.npy", NAMED)
    with pytest.raises(UsageError, match="no file can have this name"):
        write_vectors(tmp_path / "no\0name" / "out.npy", NAMED)


TOKENS = NamedVectors(["a", "b", "c"], np.arange(20, dtype=np.float32).reshape(5, 4), np.array([2, 0, 3]))


def rows_of_npz(path):
    with np.load(path) as arrays:
        return arrays["ids"].tolist(), np.split(arrays["vectors"], arrays["counts"].cumsum()[:-1])


def rows_of_safetensors(path):
    with safe_open(path, "np") as file:
        ends = file.get_tensor("counts").cumsum()[:-1]
        return json.loads(file.metadata()["ids"]), np.split(file.get_tensor("vectors"), ends)


def rows_of_parquet(path):
    table = pq.read_table(path)
    rows = [np.array(row, dtype=np.float32).reshape(-1, 4) for row in table["vectors"].to_pylist()]
    return table["id"].to_pylist(), rows


@pytest.mark.parametrize("read", [rows_of_npz, rows_of_safetensors, rows_of_parquet])
def test_a_vector_per_token_comes_back_row_by_row(tmp_path, read):
    path = tmp_path / f"out.{read.__name__.removeprefix('rows_of_')}"
    write_vectors(path, TOKENS)
    ids, rows = read(path)
    assert ids == ["a", "b", "c"]
    expected = [TOKENS.vectors[:2], TOKENS.vectors[2:2], TOKENS.vectors[2:]]
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row, other)


def test_npy_cannot_hold_a_vector_per_token(tmp_path):
    with pytest.raises(UsageError, match=r"\.npy holds one table .* use \.npz, \.parquet, \.safetensors"):
        write_vectors(tmp_path / "out.npy", TOKENS)
    assert not list(tmp_path.iterdir())
