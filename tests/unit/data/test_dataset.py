"""Named data sets from one path or a list of several."""

import logging

import pyarrow
import pyarrow.parquet
import pytest

from tests.pictures import write_csv, write_jsonl, write_pairs
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataEntry, DataSettings
from vembed.errors import ConfigError, DataError
from vembed.types import RowNeeds

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


def _negatives(path, **settings):
    dataset = load_datasets(path, DataSettings(retrieval_mode="t2t", **settings))[0]
    return [[item.text for item in dataset[index].negatives] for index in range(len(dataset))]


NTUPLES = [
    {"query": "a", "positive": "b", "negative_1": "n1", "negative_2": "n2", "negative_10": "n10"},
    {"query": "c", "positive": "d", "negative_1": "", "negative_2": "n2", "negative_10": None},
]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
def test_numbered_negatives_are_read_in_their_order_without_a_mapping(tmp_path, ending):
    assert _negatives(_written(tmp_path, NTUPLES, ending)) == [["n1", "n2", "n10"], ["n2"]]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
def test_a_field_that_is_a_list_may_have_several_columns(tmp_path, ending):
    rows = [row | {"positive_2": "p2", "hard": "h"} for row in NTUPLES]
    mapping = {"negatives": ("hard", "negative_2"), "positive": ("positive", "positive_2")}
    path = _written(tmp_path, rows, ending)
    assert _negatives(path, column_mapping=mapping) == [["h", "n2"], ["h", "n2"]]
    dataset = load_datasets(path, DataSettings(retrieval_mode="t2t", column_mapping=mapping))[0]
    assert [item.text for item in dataset[1].positives] == ["d", "p2"]


def _written(folder, rows, ending):
    path = folder / f"d.{ending}"
    if ending == "jsonl":
        return write_jsonl(path, rows)
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)
    return write_csv(path, rows, {"csv": ",", "tsv": "\t"}[ending])


def test_lists_among_several_columns_are_joined(tmp_path):
    rows = [{"query": "a", "positive": "b", "near": ["x", "y"], "far": "z"}]
    mapping = {"negatives": ("near", "far")}
    assert _negatives(write_jsonl(tmp_path / "d.jsonl", rows), column_mapping=mapping) == [["x", "y", "z"]]
    assert _negatives(write_csv(tmp_path / "d.csv", rows), column_mapping=mapping) == [["x", "y", "z"]]


def test_several_pictures_of_one_query_come_from_several_columns(tmp_path):
    rows = [{"query": "q", "image": "a.png", "image2": "b.png", "positive": "c.png"}]
    settings = DataSettings(retrieval_mode="m2i", column_mapping={"query_image": ("image", "image2")})
    query = load_datasets(write_jsonl(tmp_path / "d.jsonl", rows), settings)[0][0].query
    assert [source.path for source in query.images] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


def test_numbered_negatives_that_only_a_late_row_has_are_read(tmp_path):
    rows = [{"query": "a", "positive": "b"} for _ in range(3000)]
    rows[1234] |= {"negative_1": "n1", "negative_2": "n2"}
    assert _negatives(write_jsonl(tmp_path / "d.jsonl", rows))[1234] == ["n1", "n2"]


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        (
            {"negatives": "negative_1"},
            "negatives reads negative_1, and negative_2, negative_10 beside it are not read;"
            " column_mapping: {negatives: [negative_1, negative_2, negative_10]} reads all of them",
        ),
        (
            {"negatives": ("negative_1", "negative_10")},
            "negatives reads negative_1, negative_10, and negative_2 beside it is not read;"
            " column_mapping: {negatives: [negative_1, negative_10, negative_2]} reads all of them",
        ),
    ],
)
def test_neighbours_of_a_column_that_is_read_are_told_with_the_mapping_that_reads_them(tmp_path, caplog, mapping, told):
    load_datasets(
        write_jsonl(tmp_path / "d.jsonl", NTUPLES), DataSettings(retrieval_mode="t2t", column_mapping=mapping)
    )
    assert told in caplog.text
    assert caplog.text.count("WARNING") == 1


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (
            "positive_2",
            "positive reads positive, and positive_2 beside it is not read; column_mapping: {positive: [positive,",
        ),
        ("positives", "column_mapping: {positive: [positive, positives]} reads all of them"),
        (
            "query2",
            "query reads query, and query2 beside it is not read; a row has one, and column_mapping: {query: query2}",
        ),
    ],
)
def test_neighbours_of_every_field_are_told(tmp_path, caplog, column, told):
    _load(write_jsonl(tmp_path / "d.jsonl", [{**ROW, column: "c"}]), retrieval_mode="t2t")
    assert told in caplog.text


@pytest.mark.parametrize("names", [["negative_2", "negative_02"], ["negative_1", "negative1", "negative 01"]])
def test_numbered_columns_of_one_number_are_all_read(tmp_path, names):
    row = {**ROW, **{name: f"of {name}" for name in names}}
    (data,) = _load(write_jsonl(tmp_path / "d.jsonl", [row]), retrieval_mode="t2t")
    assert {item.text for item in data[0].negatives} == {f"of {name}" for name in names}


def test_every_column_that_is_not_read_is_listed(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [{"query": "a", "positive": "b", "class": 1, "url": "u", "price": 3}]
    load_datasets(write_jsonl(tmp_path / "d.jsonl", rows), DataSettings(retrieval_mode="t2t"))
    assert "d.jsonl: columns that are not read: url, price" in caplog.text
    assert "WARNING" not in caplog.text


@pytest.mark.parametrize(
    ("mode", "row", "told"),
    [
        ("t2t", {"query_image": "q.png"}, "query_image is not read: retrieval_mode t2t takes a text as query"),
        ("t2t", {"positive_image": "q.png"}, "positive_image is not read: retrieval_mode t2t takes a text as positive"),
        ("i2t", {"negative_images": ["n.png"]}, "negative_images is not read: retrieval_mode i2t takes a text as neg"),
        ("t2i", {"positive_image": "p.png"}, "positive is not read: retrieval_mode t2i takes an image as positive"),
        (
            "i2t",
            {"query_image": "p.png"},
            "query is not read: retrieval_mode i2t takes an image as query, and query_im",
        ),
    ],
)
def test_columns_of_the_other_kind_are_told(tmp_path, caplog, mode, row, told):
    caplog.set_level("INFO")
    path = write_jsonl(tmp_path / "d.jsonl", [{**ROW, **row}])
    _load(path, retrieval_mode=mode)
    assert caplog.text.count("WARNING") == 1
    assert told in caplog.text
    assert f"columns that are not read: {told.split()[0]}" in caplog.text
    caplog.clear()
    _load(path, retrieval_mode="m2m")
    assert not caplog.text


def test_a_mapped_column_of_the_other_kind_is_told_by_its_own_name(tmp_path, caplog):
    path = write_jsonl(tmp_path / "d.jsonl", [{**ROW, "photo": "p.png", "positive_image": "x.png"}])
    _load(path, retrieval_mode="t2t", column_mapping={"query_image": "photo", "positive": "positive_image"})
    assert "photo is not read: retrieval_mode t2t takes a text as query" in caplog.text
    assert "positive_image is" not in caplog.text


def test_embeddings_that_no_teacher_is_asked_for_and_a_class_beside_a_mapped_group_are_listed(tmp_path, caplog):
    caplog.set_level("INFO")
    row = {**ROW, "query_embedding": [1.0], "positive_embeddings": [[1.0]], "class": 3, "sku": 4}
    path = write_jsonl(tmp_path / "d.jsonl", [row])
    _load(path, retrieval_mode="t2t", column_mapping={"group": "sku"})
    assert "columns that are not read: query_embedding, positive_embeddings, class" in caplog.text
    assert "WARNING" not in caplog.text
    caplog.clear()
    load_datasets(path, _settings(retrieval_mode="t2t"), needs=RowNeeds(embeddings=True))
    assert "columns that are not read: sku" in caplog.text
    caplog.clear()
    _load(write_jsonl(tmp_path / "both.jsonl", [{**ROW, "class": 3, "group": 4}]), retrieval_mode="t2t")
    assert "columns that are not read: class (in rows that have a group)" in caplog.text


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"query": ("a", "b")}, "column_mapping: query: is in one column"),
        ({"negatives": ()}, "column_mapping: negatives: name at least one column"),
        ({"negatives": ("n", "n")}, "column_mapping: negatives: name at least one column, and each once"),
    ],
)
def test_several_columns_where_one_thing_stands_are_refused(tmp_path, mapping, words):
    with pytest.raises(ConfigError, match=words):
        load_datasets(write_jsonl(tmp_path / "d.jsonl", NTUPLES), DataSettings(column_mapping=mapping))


def test_each_of_several_columns_has_to_be_there(tmp_path):
    mapping = {"negatives": ("negative_1", "negative_3")}
    with pytest.raises(DataError, match="negatives: there is no column 'negative_3'; did you mean 'negative_"):
        load_datasets(write_jsonl(tmp_path / "d.jsonl", NTUPLES), DataSettings(column_mapping=mapping))
