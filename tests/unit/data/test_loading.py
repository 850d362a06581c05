"""From a path to rows, and the refusal of paths that lead nowhere."""

import pytest

from tests.pictures import write_csv, write_jsonl
from vembed.data.loading import has_column, load_data
from vembed.errors import DataError

ROW = {"query": "a", "positive": "b"}


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.ndjson", "D.JSONL"])
def test_json_of_every_ending(tmp_path, name):
    assert load_data(write_jsonl(tmp_path / name, [ROW]))[0] == ROW


@pytest.mark.parametrize(("name", "delimiter"), [("d.csv", ","), ("d.tsv", "\t"), ("d.tab", "\t")])
def test_tables_of_every_ending(tmp_path, name, delimiter):
    rows = load_data(write_csv(tmp_path / name, [ROW], delimiter))
    assert rows[0] == ROW
    assert has_column(rows, "positive")
    assert not has_column(rows, "negatives")


def test_a_missing_file_is_refused_and_the_nearest_named(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [ROW])
    with pytest.raises(
        DataError, match=r"trian\.jsonl: there is no such file or folder; did you mean .*train\.jsonl\?"
    ):
        load_data(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="nor the folder"):
        load_data(str(tmp_path / "no" / "train.jsonl"))
    with pytest.raises(DataError, match="there is no such file"):
        load_data("train.csv")


def test_a_hub_name_that_cannot_be_loaded_says_that_it_was_taken_for_one():
    with pytest.raises(DataError, match="nobody/nothing: there is no such file or folder, and it could not be loaded"):
        load_data("nobody/nothing")


@pytest.mark.parametrize("name", ["d.xlsx", "d.txt", "d.jsonl.gz", "d"])
def test_an_unknown_kind_of_file_is_refused_with_the_known_ones(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"not known; known: \.jsonl"):
        load_data(str(tmp_path / name))


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [ROW])
    with pytest.raises(DataError, match=r"Parquet files; this one holds train\.jsonl"):
        load_data(str(tmp_path))


def test_split_and_subset_of_a_file_are_refused_and_not_ignored(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [ROW])
    with pytest.raises(DataError, match="split and subset are for"):
        load_data(path, split="train")


@pytest.mark.parametrize("path", ["x" * 5000 + ".csv", "a/" * 3000 + "b.jsonl", "a\0b.csv", "*" * 5000 + ".parquet"])
def test_a_name_that_no_file_can_have_is_a_file_that_is_not_there(path):
    with pytest.raises(DataError, match="there is no such file") as refused:
        load_data(path)
    assert len(str(refused.value)) < 1000 or path.startswith("*")
