"""Folders and patterns of Parquet files: one data set, whole, in order, of one split."""

import logging
import os
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from vembed.data.dataset import load_datasets
from vembed.data.loading import load_data
from vembed.data.settings import DataSettings
from vembed.errors import DataError


def _write(path, *queries, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"query": list(queries), "positive": [f"d{query}" for query in queries], **columns}
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def _queries(path, **entry):
    rows = load_data(str(path), **entry)
    return [rows[index]["query"] for index in range(len(rows))]


@pytest.fixture
def repo(tmp_path):
    """A folder as the hub lays it out: two files of train, one of test, and a description."""
    _write(tmp_path / "repo/data/train-00001-of-00002.parquet", "c", "d")
    _write(tmp_path / "repo/data/train-00000-of-00002.parquet", "a", "b")
    _write(tmp_path / "repo/data/test-00000-of-00001.parquet", "t")
    (tmp_path / "repo/README.md").write_text("about")
    return tmp_path / "repo"


def test_the_files_of_a_split_are_one_data_set_in_their_order(repo):
    assert _queries(repo) == _queries(repo / "data") == _queries(repo, split="train") == ["a", "b", "c", "d"]
    assert _queries(repo, split="test") == ["t"]
    rows = load_data(str(repo))
    places = [rows.origin(index) for index in range(4)]
    assert [place.removeprefix(f"{repo}/data/") for place in places] == [
        "train-00000-of-00002.parquet:1",
        "train-00000-of-00002.parquet:2",
        "train-00001-of-00002.parquet:1",
        "train-00001-of-00002.parquet:2",
    ]
    assert [rows.number(index) for index in range(4)] == [1, 2, 3, 4]
    assert pickle.loads(pickle.dumps(rows))[2]["query"] == "c"


def test_a_split_that_is_not_there_is_refused_with_those_that_are(repo):
    with pytest.raises(DataError, match="there is no split 'validation'; set split to one of: test, train"):
        load_data(str(repo), split="validation")
    for path in repo.glob("data/train*"):
        path.unlink()
    with pytest.raises(DataError, match="there is no split 'train'; set split to one of: test"):
        load_data(str(repo))


def test_a_file_that_is_missing_among_several_is_told(repo):
    (repo / "data/train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"of the 2 files of train, 1 are missing, .* train-00000-of-00002; download"):
        load_data(str(repo))
    assert _queries(f"{repo}/data/train-*.parquet") == ["c", "d"]


def test_subsets_are_folders_and_one_has_to_be_named(tmp_path):
    for name in ("de", "fr"):
        _write(tmp_path / f"{name}/train-00000-of-00001.parquet", name)
    assert _queries(tmp_path, subset="fr") == ["fr"]
    with pytest.raises(DataError, match="in folders of their own; set subset to one of: de, fr"):
        load_data(str(tmp_path))
    with pytest.raises(
        DataError, match="subset 'it': there are Parquet files in folders of their own; set subset to one"
    ):
        load_data(str(tmp_path), subset="it")


@pytest.mark.parametrize("word", ["val", "valid", "dev", "validation"])
def test_splits_go_by_the_words_of_the_hub(tmp_path, word):
    _write(tmp_path / "my-train.parquet", "a")
    _write(tmp_path / f"my_{word}.parquet", "v")
    assert _queries(tmp_path) == ["a"]
    assert _queries(tmp_path, split="validation") == _queries(tmp_path, split=word) == ["v"]


def test_splits_may_be_folders(tmp_path):
    _write(tmp_path / "train/0000.parquet", "a")
    _write(tmp_path / "train/0001.parquet", "b")
    _write(tmp_path / "test/0000.parquet", "t")
    assert _queries(tmp_path) == ["a", "b"]
    assert _queries(tmp_path, split="test") == ["t"]


def test_files_whose_names_tell_no_split_are_all_read_and_a_mixture_is_refused(tmp_path):
    _write(tmp_path / "part-1.parquet", "a")
    _write(tmp_path / "part-2.parquet", "b")
    assert _queries(tmp_path) == ["a", "b"]
    with pytest.raises(DataError, match="no split 'train'; the names of its files tell no splits apart"):
        load_data(str(tmp_path), split="train")
    _write(tmp_path / "train.parquet", "c")
    with pytest.raises(DataError, match=r"names of part-1\.parquet, part-2\.parquet do not say"):
        load_data(str(tmp_path))


def test_a_pattern_reads_what_it_fits(repo):
    assert _queries(f"{repo}/data/*.parquet") == ["t", "a", "b", "c", "d"]
    assert _queries(f"{repo}/**/*.parquet", split="train") == ["a", "b", "c", "d"]
    with pytest.raises(DataError, match="no such file, and none that the pattern fits"):
        load_data(f"{repo}/data/*.pq")
    with pytest.raises(DataError, match=r"a pattern is for Parquet files, and fits README\.md too"):
        load_data(f"{repo}/*")


def test_other_data_beside_the_files_is_not_left_out_without_a_word(repo):
    (repo / "data/train.csv").write_text("query,positive\na,b\n")
    with pytest.raises(DataError, match=r"holds Parquet files, and train\.csv beside them"):
        load_data(str(repo))


def test_damage_names_the_file_that_has_it(repo):
    (repo / "data/train-00001-of-00002.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet: not a Parquet file, or a damaged one"):
        load_data(str(repo))


def test_a_column_of_some_files_is_a_column_of_the_data_set(tmp_path):
    _write(tmp_path / "part-1.parquet", "a")
    _write(tmp_path / "part-2.parquet", "b", negatives=[["n"]])
    dataset = load_datasets(str(tmp_path), DataSettings(retrieval_mode="t2t"))[0]
    assert dataset.columns == ("query", "positive", "negatives")
    assert [len(dataset[index].negatives) for index in range(2)] == [0, 1]


@pytest.mark.parametrize("path", ["repo", "repo/data", "repo/data/*.parquet"])
def test_paths_of_pictures_start_where_the_files_lie(repo, monkeypatch, path):
    monkeypatch.chdir(repo.parent)
    dataset = load_datasets(path, DataSettings())[0]
    (source,) = dataset[0].positives[0].images
    assert source.path.startswith("repo/data/d")


_IRREGULAR = {
    "a link to nothing": lambda path: path.symlink_to("gone"),
    "a pipe": os.mkfifo,
    "a folder": lambda path: _write(path / "part-0.parquet", "c"),
}


@pytest.mark.parametrize("kind", _IRREGULAR)
@pytest.mark.parametrize("form", ["{}", "{}/*.parquet", "{}/**", "{}/[ab].p*"])
def test_a_shard_that_is_no_file_is_not_passed_over(tmp_path, kind, form):
    _write(tmp_path / "a.parquet", "a")
    _IRREGULAR[kind](tmp_path / "b.parquet")
    with pytest.raises(DataError, match=rf"b\.parquet: is {kind}, and no file that can be read"):
        load_data(form.format(tmp_path))
    assert _queries(tmp_path / "[a]*.parquet") == ["a"]


def test_a_link_to_a_file_is_a_shard(tmp_path):
    _write(tmp_path / "elsewhere/x.parquet", "b")
    _write(tmp_path / "data/a.parquet", "a")
    (tmp_path / "data/b.parquet").symlink_to("../elsewhere/x.parquet")
    assert _queries(tmp_path / "data") == ["a", "b"]


def test_files_in_folders_below_are_not_left_out(tmp_path):
    _write(tmp_path / "a.parquet", "a")
    _write(tmp_path / "sub/deeper/b.parquet", "b")
    with pytest.raises(DataError, match=r"read from .*a\.parquet, and .*sub/deeper/b\.parquet left out"):
        load_data(str(tmp_path))
    with pytest.raises(DataError, match=r"fits folders too, .*: .*sub/deeper/b\.parquet; let it"):
        load_data(f"{tmp_path}/*")
    assert _queries(f"{tmp_path}/*.parquet") == ["a"]
    assert _queries(f"{tmp_path}/**/*.parquet") == ["a", "b"]


def test_a_second_place_of_the_same_data_is_not_left_out(tmp_path):
    _write(tmp_path / "a.parquet", "a")
    _write(tmp_path / "data/train-00000-of-00001.parquet", "b")
    with pytest.raises(DataError, match=r"read from .*a\.parquet, and .*data/train-00000-of-00001\.parquet left out"):
        load_data(str(tmp_path))
    (tmp_path / "a.parquet").rename(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"data/train-00000-of-00001\.parquet left out"):
        load_data(str(tmp_path))
    (tmp_path / "train.parquet").rename(tmp_path / "test.parquet")
    assert _queries(tmp_path, split="test") == ["a"]


def test_a_subset_beside_the_data_without_one_is_told(repo, caplog):
    _write(repo / "french/train-00000-of-00001.parquet", "f")
    (repo / "loop").symlink_to(repo)
    with caplog.at_level(logging.WARNING):
        assert _queries(repo) == ["a", "b", "c", "d"]
    (message,) = caplog.messages
    assert "in other folders are not read" in message
    assert "french/train-00000-of-00001.parquet" in message
    caplog.clear()
    assert _queries(repo, subset="french") == ["f"]
    assert not caplog.messages


@pytest.mark.parametrize("form", ["{}", "{}/data/*.parquet", "{}/data/train-*"])
def test_files_of_two_writings_are_not_joined(repo, form):
    _write(repo / "data/train-00000-of-00001.parquet", "old")
    with pytest.raises(DataError, match=r"train were written at least twice.*train-\*-of-00001 or train-\*-of-00002"):
        load_data(form.format(repo))
    assert _queries(repo, split="test") == ["t"]
    assert _queries(f"{repo}/data/train-*-of-00002.parquet") == ["a", "b", "c", "d"]
