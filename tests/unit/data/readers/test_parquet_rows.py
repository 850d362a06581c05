"""Parquet files: what the file holds now, in any order, by any process; and damage that is refused with its place."""

import datetime
import decimal
import io
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tempfile

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from vembed.data.loading import load_data
from vembed.data.readers import batch_store
from vembed.data.readers.batch_store import MemoryLeft
from vembed.data.readers.joined_rows import JoinedRows
from vembed.data.readers.parquet_rows import open_parquet
from vembed.data.readers.table_rows import TableRows
from vembed.data.records import RowReader
from vembed.errors import DataError
from vembed.types import RowNeeds


def _write(path, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return str(path)


def _pairs(path, count=10, **options):
    return _write(
        path, {"query": [f"q{i}" for i in range(count)], "positive": [f"d{i}" for i in range(count)]}, **options
    )


def _all(rows):
    return [dict(rows[index]) for index in range(len(rows))]


def test_a_file_replaced_by_another_of_the_same_time_and_size_gives_its_own_rows(tmp_path):
    for word in ("one", "two"):
        path = _write(tmp_path / "t.parquet", {"query": [word], "positive": ["d"]})
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert load_data(path)[0]["query"] == word


def test_neither_the_home_nor_datasets_is_needed(tmp_path):
    path = _pairs(tmp_path / "t.parquet")
    code = (
        "import sys; from vembed.data.loading import load_data;"
        f"print(load_data({path!r})[3]['query'], 'datasets' in sys.modules)"
    )
    environment = {**os.environ, "HOME": "/proc/nowhere", "HF_HOME": "/proc/nowhere", "XDG_CACHE_HOME": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["q3", "False"]


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("group", [1, 7, 1000])
def test_rows_in_any_order_from_memory_and_from_the_temporary_folder(tmp_path, monkeypatch, memory, group):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = _pairs(tmp_path / "t.parquet", 3000, row_group_size=group)
    rows = open_parquet(path, MemoryLeft(memory))
    assert not list((tmp_path / "temporary").iterdir())
    order = random.Random(0).sample(range(3000), 3000)
    assert [dict(rows[index]) for index in order] == [{"query": f"q{i}", "positive": f"d{i}"} for i in order]
    assert rows.origin(2999) == f"{path}:3000"


def test_what_is_held_in_memory_is_bounded_over_all_files(tmp_path):
    memory = MemoryLeft(3000)
    for number in range(4):
        open_parquet(_write(tmp_path / f"{number}.parquet", {"query": ["x" * 1000]}), memory)
    assert 0 <= memory.num_bytes < 1000


def test_a_temporary_folder_without_room_refuses_the_file_and_names_it(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(DataError, match=r"t\.parquet: takes over .* free in .*temporary; name a folder .* TMPDIR"):
        open_parquet(_pairs(tmp_path / "t.parquet"), MemoryLeft(0))
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_file_that_is_removed_or_overwritten_changes_nothing_for_who_has_it_open(tmp_path, memory):
    path = tmp_path / "t.parquet"
    rows = open_parquet(_pairs(path, 100), MemoryLeft(memory))
    os.truncate(path, 10)
    path.unlink()
    assert rows[99]["query"] == "q99"


def _query(rows, index, answers):
    answers.put(rows[index]["query"])


def test_another_process_holds_no_more_in_memory_than_this_one(tmp_path, monkeypatch):
    paths = [_pairs(tmp_path / f"{number}.parquet", 1000) for number in range(6)]
    one = open_parquet(paths[0], left := MemoryLeft(1_000_000))
    assert len(one) == 1000
    files = []
    opened = batch_store._BatchFile
    monkeypatch.setattr(batch_store, "_BatchFile", lambda *words: files.append(words) or opened(*words))
    memory = MemoryLeft(int(3.5 * (1_000_000 - left.num_bytes)))
    rows = JoinedRows([open_parquet(path, memory) for path in paths])
    assert len(files) == 3
    packed = pickle.dumps(rows)
    files.clear()
    again = pickle.loads(packed)
    assert len(files) == 3
    assert again[5999]["query"] == rows[5999]["query"] == "q999"


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_other_processes_read_the_same_rows(tmp_path, start, memory):
    rows = open_parquet(_pairs(tmp_path / "t.parquet", 100), MemoryLeft(memory))
    context = multiprocessing.get_context(start)
    answers = context.Queue()
    processes = [context.Process(target=_query, args=(rows, index, answers)) for index in (3, 97)]
    for process in processes:
        process.start()
    assert sorted(answers.get(timeout=60) for _ in processes) == ["q3", "q97"]
    for process in processes:
        process.join()


def test_a_process_that_would_decode_another_file_refuses_it(tmp_path):
    packed = pickle.dumps(open_parquet(_pairs(tmp_path / "t.parquet", 10)))
    assert len(pickle.loads(packed)) == 10
    _pairs(tmp_path / "t.parquet", 10)
    with pytest.raises(DataError, match=r"t\.parquet: the file was replaced or written to"):
        pickle.loads(packed)


_COLUMNS = {
    "int8": pyarrow.array([1, None, -3], pyarrow.int8()),
    "uint64": pyarrow.array([2**64 - 1, 0, None], pyarrow.uint64()),
    "float32": pyarrow.array([1.1, float("inf"), None], pyarrow.float32()),
    "bool": pyarrow.array([True, None, False]),
    "null": pyarrow.nulls(3),
    "timestamp": pyarrow.array([datetime.datetime(2020, 1, 1), None, None], pyarrow.timestamp("ms", "Europe/Berlin")),
    "date": pyarrow.array([datetime.date(2020, 1, 1), None, None]),
    "decimal": pyarrow.array([decimal.Decimal("1.50"), None, None], pyarrow.decimal128(10, 2)),
    "dictionary": pyarrow.array(["a", None, "b"]).dictionary_encode(),
    "string": pyarrow.array(["a", None, ""]),
    "large_string": pyarrow.array(["a", None, ""], pyarrow.large_string()),
    "binary": pyarrow.array([b"a", None, b""]),
    "list": pyarrow.array([["a", None], None, []]),
    "fixed_list": pyarrow.array([[1, 2], None, [3, 4]], pyarrow.list_(pyarrow.int32(), 2)),
    "struct": pyarrow.array([{"a": 1, "b": [{"c": "x"}]}, None, {"a": None, "b": None}]),
    "pictures": pyarrow.array([[{"bytes": b"x", "path": None}], None, []]),
}


@pytest.mark.parametrize("kind", _COLUMNS)
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_cells_of_every_kind_are_what_datasets_gives(tmp_path, kind, memory):
    path = _write(tmp_path / "t.parquet", {"c": _COLUMNS[kind]})
    same = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache")).with_format("arrow")[:].to_pylist()
    assert repr(_all(open_parquet(path, MemoryLeft(memory)))) == repr(same)


def test_columns_that_datasets_described_are_what_they_were(tmp_path):
    classes = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(
        {"label": classes, "labels": datasets.List(classes), "grid": datasets.Array2D((2, 2), "float32")}
    )
    rows = [{"label": 1, "labels": [0, 1], "grid": [[1, 2], [3, 4]]}, {"label": -1, "labels": [], "grid": [[0, 0]] * 2}]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "t.parquet")
    found = _all(open_parquet(str(tmp_path / "t.parquet")))
    assert found == [rows[0] | {"label": "dog"}, rows[1] | {"label": None}]


def _with_classes(path, labels, note):
    table = pyarrow.table({"label": labels}).replace_schema_metadata({"huggingface": note})
    pyarrow.parquet.write_table(table, path)
    return str(path)


def test_a_class_that_has_no_name_is_a_bad_row_and_damaged_notes_refuse_the_file(tmp_path):
    note = json.dumps({"info": {"features": {"label": {"names": ["cat"], "_type": "ClassLabel"}}}})
    rows = open_parquet(_with_classes(tmp_path / "t.parquet", [0, 7], note))
    assert rows[0]["label"] == "cat"
    with pytest.raises(DataError, match=r"t\.parquet:2: label: there is no class 7"):
        rows[1]["label"]
    num_refused = 0
    for number, damaged in enumerate(("{", "[1]", '{"info": {"features": 3}}', "[" * 100_000)):
        with pytest.raises(DataError, match=r"t\d\.parquet: what datasets noted of its columns"):
            open_parquet(_with_classes(tmp_path / f"t{number}.parquet", [0], damaged))
        num_refused += 1
    assert num_refused == 4


def test_of_columns_of_one_name_the_first_counts(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["first"]), pyarrow.array(["second"])], ["query", "query"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    rows = open_parquet(str(tmp_path / "t.parquet"))
    assert (rows.columns, dict(rows[0])) == (("query",), {"query": "first"})


def test_a_text_that_is_not_utf8_is_a_bad_row_and_no_matter_where_it_is_not_read(tmp_path):
    bad = pyarrow.array([b"fine", b"\xff\xfe"]).view(pyarrow.string())
    rows = open_parquet(_write(tmp_path / "t.parquet", {"query": bad, "positive": ["a", "b"], "other": bad}))
    reader = RowReader("t2t")
    assert reader(rows[0], rows.origin(0)).query.text == "fine"
    with pytest.raises(DataError, match=r"t\.parquet:2: column 'query' cannot be decoded: .*utf-8"):
        reader(rows[1], rows.origin(1))
    assert RowReader("t2t", {"query": "positive"})(rows[1], rows.origin(1)).query.text == "b"


def test_a_damaged_page_refuses_the_file_with_the_rows_that_it_was_to_give(tmp_path):
    path = _pairs(tmp_path / "t.parquet", 3000, row_group_size=1000, compression="zstd", use_dictionary=False)
    start = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[start + 60 : start + 90] = b"\xff" * 30
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"t\.parquet: rows 1025 to 2048 cannot be decoded: the file is damaged: "):
        load_data(path)


def test_a_checksum_that_the_file_has_is_checked(tmp_path):
    path = _pairs(tmp_path / "t.parquet", 100, compression="none", use_dictionary=False, write_page_checksum=True)
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data.replace(b"q50", b"q05"))
    with pytest.raises(DataError, match="rows 1 to 100 cannot be decoded"):
        load_data(path)


def test_a_pipe_and_a_folder_of_that_name_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: is no regular file"):
        load_data(str(tmp_path / "t.parquet"))


def _mutated(data, draw):
    data, place = bytearray(data), draw.randrange(len(data))
    kind = draw.randrange(4)
    if kind == 0:
        data[place] ^= 1 << draw.randrange(8)
    elif kind == 1:
        data[place : place + 16] = b"\xff" * 16
    elif kind == 2:
        del data[place : place + draw.randint(1, 50)]
    else:
        place = len(data) - draw.randint(8, min(len(data), 1500))
        data[place : place + 4] = draw.randbytes(4)
    return data


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_whatever_is_damaged_a_file_is_read_or_refused_by_name(tmp_path, compression):
    table = pyarrow.table(
        {
            "query": [f"query {i}" for i in range(60)],
            "positive": [{"bytes": bytes([i] * 20), "path": None} for i in range(60)],
            "negatives": [[f"n{j}" for j in range(i % 3)] for i in range(60)],
        }
    )
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression=compression, row_group_size=20, data_page_size=200)
    draw, num_read, num_refused = random.Random(compression), 0, 0
    path = tmp_path / "t.parquet"
    for _ in range(150):
        path.write_bytes(_mutated(file.getvalue(), draw))
        try:
            num_read += _all_named(open_parquet(str(path)))
        except DataError as error:
            num_refused += str(error).startswith(str(path))
    assert num_read > 10
    assert num_refused > 50
    assert num_read + num_refused == 150


def _all_named(rows: TableRows) -> bool:
    """True if every row is read or refused by its name."""
    named = 0
    for index in range(len(rows)):
        try:
            dict(rows[index])
        except DataError as error:
            named += str(error).startswith(rows.origin(index))
        else:
            named += 1
    return named == len(rows)


def test_embeddings_of_a_table_are_read(tmp_path):
    path = _write(
        tmp_path / "t.parquet",
        {"query": ["a"], "positive": ["b"], "query_embedding": [[1.0, 2.0]], "positive_embeddings": [[[3.0, 4.0]]]},
    )
    example = RowReader("t2t", needs=RowNeeds(embeddings=True))(load_data(path)[0], "x:1")
    assert np.array_equal(example.embeddings.documents, [[3, 4]])
