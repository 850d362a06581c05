"""Named data sets from one path or a list of several."""

import logging

import pytest

from tests.pictures import write_csv, write_jsonl, write_pairs
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataEntry, DataSettings
from vembed.errors import ConfigError, DataError

ROW = {"query": "a", "positive": "b"}


def _settings(**values):
    return DataSettings.model_validate(values)


def _entry(path, **values):
    return DataEntry.model_validate({"path": path, **values})


def _load(source, **values):
    return load_datasets(source, _settings(**values))


def test_one_path_is_one_data_set(tmp_path):
    (data,) = _load(write_pairs(tmp_path, 5, groups=2))
    assert (data.name, data.mode, data.weight, len(data)) == ("t2i", "t2i", 1.0, 5)
    assert data[4].query.text == "query number 4 of a small data set"
    assert data[4].origin == data.origin(4) == f"{tmp_path}/pairs.jsonl:5"
    assert data[0].group == data[2].group != data[1].group


def test_examples_are_numbered_from_0_to_the_end_only(tmp_path):
    (data,) = _load(write_jsonl(tmp_path / "d.jsonl", [ROW] * 3), retrieval_mode="t2t")
    for index in (3, -1):
        with pytest.raises(IndexError):
            data[index]
    assert len(list(data)) == 3


def test_a_selection_keeps_name_weight_and_origins(tmp_path):
    rows = [{"query": str(number), "positive": "b"} for number in range(10)]
    (data,) = load_datasets(
        (_entry(write_jsonl(tmp_path / "d.jsonl", rows), weight=2),), _settings(retrieval_mode="t2t")
    )
    part = data.select([7, 2, 5]).select([2, 0])
    assert [part[index].query.text for index in range(len(part))] == ["5", "7"]
    assert part.origin(0).endswith("d.jsonl:6")
    assert (part.name, part.weight) == ("t2t", 2.0)


def test_names_are_the_mode_where_it_is_unique_then_the_stem_and_never_twice(tmp_path):
    paths = [write_jsonl(tmp_path / name, [ROW]) for name in ("a.jsonl", "b.jsonl", "b.json", "c.jsonl")]
    source = (
        paths[0],
        _entry(paths[1], retrieval_mode="t2i"),
        _entry(paths[2], retrieval_mode="t2i"),
        _entry(paths[3], retrieval_mode="i2i", name="shapes"),
    )
    assert [data.name for data in _load(source, retrieval_mode="t2t")] == ["t2t", "b", "b_2", "shapes"]
    with pytest.raises(ConfigError, match="two data sets are called 'x'"):
        _load((_entry(paths[0], name="x"), _entry(paths[1], name="x")), retrieval_mode="t2t")


def test_an_entry_overrides_the_runs_values(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"caption": "a", "file": "b.png", "other": "x"}])
    (tmp_path / "images").mkdir()
    entry = _entry(
        path,
        retrieval_mode="t2i",
        column_mapping={"query": "caption", "positive": "file"},
        image_root=str(tmp_path / "images"),
    )
    (data,) = load_datasets((entry,), _settings(column_mapping={"query": "x"}, image_root="nowhere"))
    assert data[0].positives[0].images[0].path == str(tmp_path / "images" / "b.png")


def test_image_paths_start_at_the_data_file_by_default(tmp_path):
    (data,) = _load(write_pairs(tmp_path / "deep", 1))
    assert data[0].positives[0].images[0].path == str(tmp_path / "deep" / "positive_0.png")


def test_paths_out_of_image_root_are_refused_only_when_it_was_set(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"query": "a", "positive": "../b.png"}])
    (tmp_path / "images").mkdir()
    (free,) = _load(path)
    assert free[0].positives[0].images[0].path == f"{tmp_path}/../b.png"
    (confined,) = _load(path, image_root=str(tmp_path / "images"))
    with pytest.raises(DataError, match=r"d\.jsonl:1: positive: .*leads out of image_root"):
        confined[0]
    (allowed,) = _load(path, image_root=str(tmp_path / "images"), allow_paths_outside_image_root=True)
    assert allowed[0].positives[0].images[0].path.endswith("images/../b.png")
    with pytest.raises(DataError, match="image_root: there is no folder"):
        _load(path, image_root=str(tmp_path / "no"))
    with pytest.raises(DataError, match="image_root: there is no folder"):
        _load(path, image_root="n" * 5000)


def test_data_without_a_required_column_are_refused_at_once(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"caption": "a", "positve": "b"}])
    with pytest.raises(DataError, match=r"query: there is no column 'query'\. The data has: caption, positve"):
        _load(path)
    with pytest.raises(DataError, match="no column 'positive'; did you mean 'positve'"):
        _load(path, column_mapping={"query": "caption"})


def test_a_mapping_to_a_column_that_does_not_exist_is_refused(tmp_path):
    path = write_csv(tmp_path / "d.csv", [{"query": "a", "positive": "b", "label": "c"}])
    with pytest.raises(DataError, match="group: there is no column 'labels'; did you mean 'label'"):
        _load(path, column_mapping={"group": "labels"})


def test_a_wrong_or_reversed_mapping_is_a_config_error(tmp_path):
    path = write_csv(tmp_path / "d.csv", [{"caption": "a", "image": "b"}])
    with pytest.raises(ConfigError, match="looks reversed"):
        _load(path, column_mapping={"caption": "query", "image": "positive"})
    with pytest.raises(ConfigError, match="unknown field 'querry'; did you mean 'query'"):
        _load(path, column_mapping={"querry": "caption"})


def test_an_optional_column_that_only_a_late_row_has_may_be_mapped(tmp_path):
    rows = [dict(ROW) for _ in range(2000)]
    rows[1501]["hard"] = ["c"]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    (data,) = _load(path, retrieval_mode="t2t", column_mapping={"negatives": "hard"})
    assert [len(data[index].negatives) for index in (0, 1501)] == [0, 1]


def test_a_column_that_looks_like_a_misspelt_field_is_mentioned(tmp_path, caplog):
    path = write_jsonl(tmp_path / "d.jsonl", [{**ROW, "negative": ["c"], "comment": "x"}])
    with caplog.at_level(logging.WARNING):
        _load(path, retrieval_mode="t2t")
    assert len(caplog.records) == 1
    assert "column 'negative' is not used" in caplog.text
    assert "{negatives: negative}" in caplog.text


def test_lists_in_csv_cells_are_negatives(tmp_path):
    rows = [
        {"query": "a", "positive": "['b', 'c']", "negatives": '["d", "e"]'},
        {"query": "[sic] a", "positive": "[1] b", "negatives": ""},
    ]
    (data,) = _load(write_csv(tmp_path / "d.csv", rows), retrieval_mode="t2t")
    assert [item.text for item in data[0].positives] == ["b", "c"]
    assert [item.text for item in data[0].negatives] == ["d", "e"]
    assert [item.text for item in data[1].positives] == ["[1] b"]
    assert data[1].negatives == ()


def test_an_empty_list_of_data_sets_is_refused():
    with pytest.raises(ConfigError, match="list of data sets is empty"):
        _load(())
