"""A data set in a few figures."""

import json

from tests.pictures import write_jsonl
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.data.summary import summarize


def _data(tmp_path, rows, mode):
    return load_datasets(
        write_jsonl(tmp_path / "d.jsonl", rows), DataSettings.model_validate({"retrieval_mode": mode})
    )[0]


def test_figures_are_those_of_the_rows(tmp_path):
    rows = [
        {"query": "a" * 10, "positive": ["b" * 20, "c" * 30], "negatives": ["d"] * 3, "group": "x"},
        {"query": "a" * 20, "positive": "b" * 40, "group": "x"},
        {"query": "a" * 60, "positive": "b" * 50, "group": "y"},
        {"query": "", "positive": "b"},
    ]
    assert summarize(_data(tmp_path, rows, "t2t")) == {
        "name": "t2t",
        "mode": "t2t",
        "weight": 1.0,
        "num_rows": 4,
        "num_rows_seen": 4,
        "num_bad_rows": 1,
        "num_groups": 2,
        "num_rows_with_negatives": 1,
        "mean_positives": 1.333,
        "mean_negatives": 1.0,
        "query_characters": {"median": 20, "p95": 56, "max": 60},
        "document_characters": {"median": 35, "p95": 48, "max": 50},
    }


def test_pictures_have_no_text_lengths_and_need_not_exist(tmp_path):
    summary = summarize(_data(tmp_path, [{"query": "a", "positive": "no.png"}], "t2i"))
    assert summary["document_characters"] is None
    assert json.loads(json.dumps(summary)) == summary


def test_of_many_rows_some_are_looked_at(tmp_path):
    summary = summarize(_data(tmp_path, [{"query": "a", "positive": "b"}] * 12_000, "t2t"))
    assert (summary["num_rows"], summary["num_rows_seen"]) == (12_000, 10_000)
