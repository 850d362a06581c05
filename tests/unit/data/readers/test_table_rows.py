"""Parquet and save_to_disk folders, with every way that `datasets` stores a picture."""

import io
import pickle

import datasets
import numpy as np
import pytest

from tests.pictures import make_picture, write_picture
from vembed.data.fields.images import ImageCellParser
from vembed.data.images import read_image
from vembed.data.loading import load_data
from vembed.data.records import RowReader
from vembed.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def _png(seed):
    buffer = io.BytesIO()
    make_picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def table():
    """Three rows: pictures as an Image feature, lists of pictures, class labels."""
    features = datasets.Features(
        {
            "query": datasets.Value("string"),
            "positive": datasets.Image(),
            "negatives": datasets.List(datasets.Image()),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    rows = [
        {"query": f"number {i}", "positive": make_picture(i), "negatives": [make_picture(10 + i)] * i, "label": i % 2}
        for i in range(3)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def _check_rows(rows):
    assert len(rows) == 3
    reader = RowReader("t2i", {"group": "label"}, ImageCellParser())
    examples = [reader(rows[index], rows.origin(index)) for index in range(3)]
    assert [example.query.text for example in examples] == ["number 0", "number 1", "number 2"]
    assert [len(example.negatives) for example in examples] == [0, 1, 2]
    assert examples[0].group == examples[2].group != examples[1].group
    picture = read_image(examples[2].positives[0].images[0], max_pixels=10_000)
    assert np.array_equal(np.asarray(picture), np.asarray(make_picture(2)))


def test_a_saved_data_set_is_read_with_its_pictures_still_encoded(tmp_path, table):
    table.save_to_disk(str(tmp_path / "saved"))
    rows = load_data(str(tmp_path / "saved"))
    assert rows.columns == ("query", "positive", "negatives", "label")
    assert isinstance(rows[0]["positive"]["bytes"], bytes)
    assert rows[1]["label"] == "dog"
    assert rows.origin(2) == f"{tmp_path / 'saved'}:3"
    _check_rows(rows)
    _check_rows(pickle.loads(pickle.dumps(rows)))


def test_a_parquet_file_gives_the_same_rows(tmp_path, table):
    table.to_parquet(str(tmp_path / "data.parquet"))
    _check_rows(load_data(str(tmp_path / "data.parquet")))


def test_a_parquet_file_of_plain_columns(tmp_path):
    rows = [
        {"query": "a", "positive": _png(1), "negatives": None},
        {"query": None, "positive": None, "negatives": [_png(2)]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "data.parquet"))
    opened = load_data(str(tmp_path / "data.parquet"))
    assert [opened[0], opened[1]] == rows


def test_of_a_data_set_with_splits_train_is_taken_unless_another_is_named(tmp_path, table):
    splits = datasets.DatasetDict(train=table, test=table.select([2]))
    splits.save_to_disk(str(tmp_path / "saved"))
    path = str(tmp_path / "saved")
    assert len(load_data(path)) == 3
    assert load_data(path, split="test")[0]["query"] == "number 2"
    with pytest.raises(DataError, match="no split 'dev'; set split to one of: train, test"):
        load_data(path, split="dev")
    datasets.DatasetDict(test=table).save_to_disk(str(tmp_path / "test_only"))
    with pytest.raises(DataError, match="no split 'train'; set split to one of: test"):
        load_data(str(tmp_path / "test_only"))


def test_a_split_of_a_data_set_without_splits_is_refused(tmp_path, table):
    table.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="without splits"):
        load_data(str(tmp_path / "saved"), split="train")


def test_empty_tables_are_refused(tmp_path, table):
    table.select([]).save_to_disk(str(tmp_path / "saved"))
    table.select([]).to_parquet(str(tmp_path / "data.parquet"))
    num_refused = 0
    for name in ("saved", "data.parquet"):
        with pytest.raises(DataError, match="is empty"):
            load_data(str(tmp_path / name))
        num_refused += 1
    assert num_refused == 2


def test_files_that_are_not_what_their_name_says_are_refused(tmp_path):
    (tmp_path / "data.parquet").write_bytes(b"query,positive\n")
    with pytest.raises(DataError, match=r"data\.parquet: not a Parquet file"):
        load_data(str(tmp_path / "data.parquet"))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match="not a folder written by"):
        load_data(str(tmp_path / "saved"))


def test_a_picture_column_that_holds_paths_is_read_from_them(tmp_path):
    path = write_picture(tmp_path / "a.png", seed=1)
    table = datasets.Dataset.from_list([{"query": "a", "positive": path}]).cast_column("positive", datasets.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    row = load_data(str(tmp_path / "saved"))[0]
    example = RowReader("t2i")(row, "x:1")
    assert read_image(example.positives[0].images[0], max_pixels=10_000).size == (40, 30)
