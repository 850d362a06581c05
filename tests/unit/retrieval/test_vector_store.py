"""What is put into a store comes out by its key, in any order, after any interruption."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from vembed.errors import CheckpointError
from vembed.grad_cache.cachex.tree_utils import token_rows
from vembed.retrieval.vector_store import VectorStore
from vembed.types import Embeddings
from vembed.utils import files


def single(*values, dtype=torch.float32):
    """A vector (v, 10 v) for each value."""
    return Embeddings(torch.tensor([[value, 10 * value] for value in values], dtype=dtype))


def tokens(*counts):
    """So many tokens for each row, numbered through; padding in the front, to be left out."""
    most = max(counts)
    mask = torch.arange(most).flip(0) < torch.tensor(counts)[:, None]
    numbers = torch.full(mask.shape, -1.0)
    numbers[mask] = torch.arange(sum(counts), dtype=torch.float32)
    return Embeddings(torch.stack([numbers, -numbers], dim=2), mask)


@pytest.mark.parametrize("reopened", [False, True])
def test_rows_come_back_by_their_keys(tmp_path, reopened):
    store = VectorStore(tmp_path / "new" / "store")
    assert len(store) == 0
    assert store.dim is None
    store.append([7, -3], single(1.0, 2.0))
    store.append(np.array([2**62]), single(3.0))
    store = VectorStore(tmp_path / "new" / "store") if reopened else store
    assert len(store) == 3
    assert store.dim == 2
    assert store.contains([2**62, 5, -3, 2**62 + 1]).tolist() == [True, False, True, False]
    read = store.read([-3, 2**62, 7, -3])
    assert read.mask is None
    assert read.vectors.tolist() == [[2, 20], [3, 30], [1, 10], [2, 20]]
    assert store.read([]).vectors.shape == (0, 2)


@pytest.mark.parametrize("reopened", [False, True])
def test_rows_of_tokens_come_back_without_their_padding(tmp_path, reopened):
    store = VectorStore(tmp_path)
    store.append([1, 2, 3], tokens(2, 0, 3))
    store.append([4], tokens(1))
    store = VectorStore(tmp_path) if reopened else store
    rows = token_rows(store.read([3, 4, 2, 1]))
    assert [row[:, 0].tolist() for row in rows] == [[2, 3, 4], [0], [], [0, 1]]
    assert all(torch.equal(row[:, 1], -row[:, 0]) for row in rows)
    assert store.read([1]).vectors.shape == (1, 2, 2)


def test_tokens_without_a_mask_are_all_real(tmp_path):
    store = VectorStore(tmp_path)
    store.append([5], Embeddings(torch.ones(1, 3, 4)))
    assert store.read([5]).mask.tolist() == [[True] * 3]


def test_a_row_without_any_token_is_a_row(tmp_path):
    store = VectorStore(tmp_path)
    store.append([5], Embeddings(torch.ones(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool)))
    read = VectorStore(tmp_path).read([5, 5])
    assert read.vectors.shape == (2, 0, 4)
    assert read.mask.shape == (2, 0)


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.float16, torch.float16), (torch.float64, torch.float64), (torch.bfloat16, torch.float32)]
)
def test_numbers_are_kept_as_they_are(tmp_path, dtype, kept):
    store = VectorStore(tmp_path)
    vectors = single(0.1, 1 / 3, dtype=dtype)
    store.append([1, 2], vectors)
    read = VectorStore(tmp_path).read([1, 2]).vectors
    assert read.dtype == kept
    assert torch.equal(read, vectors.vectors.to(kept))


def test_vectors_are_mapped_not_held(tmp_path):
    VectorStore(tmp_path).append(range(10), single(*range(10)))
    (shard,) = VectorStore(tmp_path)._shards
    assert isinstance(shard.vectors.base, np.memmap)


def test_many_shards_equal_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(50, 6, generator=generator)
    keys = torch.randint(-(2**62), 2**62, (50,), generator=generator).numpy()
    one, many = VectorStore(tmp_path / "one"), VectorStore(tmp_path / "many")
    one.append(keys, Embeddings(vectors))
    for start in range(0, 50, 7):
        many.append(keys[start : start + 7], Embeddings(vectors[start : start + 7]))
    order = torch.randperm(50, generator=generator)
    for store in (one, many, VectorStore(tmp_path / "many")):
        assert torch.equal(store.read(keys[order]).vectors, vectors[order])


def test_an_interrupted_append_leaves_what_was_there(tmp_path, monkeypatch):
    store = VectorStore(tmp_path)
    store.append([1], single(1.0))
    real = np.save

    def cut_short(path, array):
        if path.name == "vectors.npy":
            raise KeyboardInterrupt
        real(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", cut_short)
        with pytest.raises(KeyboardInterrupt):
            store.append([2], single(2.0))
    store = VectorStore(tmp_path)
    assert store.contains([1, 2]).tolist() == [True, False]
    store.append([2], single(2.0))
    assert VectorStore(tmp_path).read([2]).vectors.tolist() == [[2, 20]]


def test_what_a_killed_writer_left_goes_when_no_live_one_can_need_it(tmp_path, monkeypatch):
    def die(*_ignored, **_also_ignored):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync_tree", die)
        patch.setattr(shutil, "rmtree", lambda *_ignored, **_also_ignored: None)  # killed: nobody tidies up
        with pytest.raises(KeyboardInterrupt):
            VectorStore(tmp_path).append([2], single(2.0))
    (left,) = tmp_path.glob(".shard-*.new")
    VectorStore(tmp_path).append([3], single(3.0))
    assert left.exists()  # its writer might be at work still

    long_ago = time.time() - 2 * 3600
    os.utime(left, (long_ago, long_ago))
    VectorStore(tmp_path).append([4], single(4.0))
    assert left.exists()  # a file in it is new

    for path in (*left.iterdir(), left):
        os.utime(path, (long_ago, long_ago))
    store = VectorStore(tmp_path)
    assert left.exists()  # reading changes nothing
    store.append([5], single(5.0))
    assert not left.exists()
    assert VectorStore(tmp_path).contains([2, 3, 4, 5]).tolist() == [False, True, True, True]


def test_of_equal_keys_the_first_counts(tmp_path):
    first, second = VectorStore(tmp_path), VectorStore(tmp_path)
    first.append([1, 2], single(1.0, 2.0))
    first.append([3], single(3.0))
    second.append([2, 4], single(20.0, 4.0))  # as of another process, which knew of no shard
    store = VectorStore(tmp_path)
    assert len(store) == 4
    assert store.read([1, 2, 3, 4]).vectors[:, 0].tolist() in ([1, 2, 3, 4], [1, 20, 3, 4])
    assert store.read([2, 3]).vectors.tolist() == VectorStore(tmp_path).read([2, 3]).vectors.tolist()


def test_several_can_append_to_one_folder_at_once(tmp_path):
    def append_some(start):
        store = VectorStore(tmp_path)
        for number in range(start, start + 20):
            store.append([number], single(float(number)))

    with ThreadPoolExecutor(2) as writers:
        list(writers.map(append_some, (0, 15)))
    assert VectorStore(tmp_path).read(range(35)).vectors[:, 0].tolist() == list(range(35))


@pytest.mark.parametrize(
    ("embeddings", "words"),
    [
        (Embeddings(torch.ones(1, 3)), "float32 vectors of 3 numbers, one per row cannot stand"),
        (tokens(2), "float32 vectors of 2 numbers, one per token cannot stand"),
        (single(1.0, dtype=torch.float64), "float64 vectors of 2 numbers, one per row cannot stand"),
    ],
)
def test_vectors_of_another_kind_are_refused(tmp_path, embeddings, words):
    store = VectorStore(tmp_path)
    store.append([1], single(1.0))
    with pytest.raises(CheckpointError, match=f"holds float32 vectors of 2 numbers, one per row; {words}"):
        store.append([2], embeddings)
    assert len(VectorStore(tmp_path)) == 1


@pytest.mark.parametrize("spoil", ["cut", "gone", "pickle", "other"])
def test_a_damaged_shard_is_named(tmp_path, spoil):
    VectorStore(tmp_path).append([1, 2], single(1.0, 2.0))
    (shard,) = tmp_path.glob("shard-*")
    file = shard / "vectors.npy"
    if spoil == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif spoil == "gone":
        file.unlink()
    elif spoil == "pickle":
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    else:
        np.save(file, np.ones((3, 2)))
    with pytest.raises(CheckpointError, match=rf"{shard.name} is damaged: .*Delete it, and it is made anew"):
        VectorStore(tmp_path)


def test_an_unknown_key_is_refused(tmp_path):
    store = VectorStore(tmp_path)
    for known in (False, True):
        if known:
            store.append([1], single(1.0))
        with pytest.raises(CheckpointError, match=r"lacks 1 of the 1 rows"):
            store.read([9])


@pytest.mark.parametrize("embeddings", [single(1.0, 2.0, 3.0), tokens(2, 0, 3)], ids=["rows", "tokens"])
def test_no_flipped_bit_changes_a_row_that_is_read(tmp_path, embeddings):
    """In any byte of any file, numpy's headers included: it is refused, or the row is not there and made anew."""
    store = VectorStore(tmp_path)
    store.append([1, 2, 3], embeddings)
    expected = store.read([1, 2, 3])
    outcomes = []
    for file in sorted(tmp_path.rglob("*.npy")):
        whole = file.read_bytes()
        for position in range(len(whole)):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
            try:
                changed = VectorStore(tmp_path)
                if not changed.contains([1, 2, 3]).all():
                    outcomes.append("made anew")
                    continue
                read = changed.read([1, 2, 3])
                same = torch.equal(read.vectors, expected.vectors) and read.vectors.dtype == expected.vectors.dtype
                outcomes.append("the same" if same else f"{file.name}: {position}")
            except CheckpointError as error:
                outcomes.append("refused" if f"{file.parent} is damaged" in str(error) else str(error))
        file.write_bytes(whole)
    assert {one for one in outcomes if "damaged" not in one and "cannot stand" not in one} <= {
        *("made anew", "the same", "refused"),
    }
    assert outcomes.count("the same") < 200  # spaces in headers
    assert outcomes.count("refused") > 100


def test_only_the_rows_that_are_read_are_checked_and_each_once(tmp_path):
    VectorStore(tmp_path).append([1, 2], single(1.0, 2.0))
    store = VectorStore(tmp_path)
    (file,) = tmp_path.rglob("vectors.npy")
    store.read([1])
    whole = bytearray(file.read_bytes())
    whole[-16] ^= 1  # of the first row, which was seen whole
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"shard-\S+ is damaged: a row of it is not what was written\. Delete it"):
        store.read([1, 2])
    assert store.read([1]).vectors.shape == (1, 2)


def test_a_shard_without_checksums_is_left_out_with_a_word(tmp_path, caplog):
    VectorStore(tmp_path).append([1], single(1.0))
    (file,) = tmp_path.rglob("checks.npy")
    file.unlink()
    store = VectorStore(tmp_path)
    assert "1 shards have no checksums" in caplog.text
    assert not store.contains([1])[0]
    store.append([1], single(5.0))
    assert VectorStore(tmp_path).read([1]).vectors.tolist() == [[5, 50]]
