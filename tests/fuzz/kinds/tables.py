"""Parquet files and folders of save_to_disk with damage, read as text pairs. The reference is pyarrow's whole table."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.mutations import mutate_bytes, mutate_file
from tests.fuzz.reading import Pair, Reference, judge_texts
from tests.fuzz.verdict import Verdict
from tests.tiny import tiny_bert
from vembed.model.modeling import VisualRetrievalModel

_ROWS = 12


class Tables:
    """Tables of twelve rows in three row groups."""

    def __init__(self, folder: Path) -> None:
        self._model = VisualRetrievalModel.from_pretrained(tiny_bert(folder / "bert"))

    def try_one(self, draw: random.Random, folder: Path) -> Verdict:
        """A Parquet file, or now and then a folder of Arrow files."""
        table = _table(draw)
        if draw.random() < 0.2:
            path = folder / "saved"
            datasets.Dataset(table).save_to_disk(path)
            mutate_file(draw.choice(sorted(path.iterdir())), draw)
            return judge_texts(path, self._model, _numbered(path, _arrow_rows(path)))
        path = folder / "table.parquet"
        _write(table, path, draw)
        if draw.random() < 0.8:
            path.write_bytes(mutate_bytes(path.read_bytes(), draw))
        return judge_texts(path, self._model, _numbered(path, _parquet_rows(path)))


def _table(draw: random.Random) -> pa.Table:
    kind = draw.choice((pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())))
    queries = pa.array([f"query {number}" for number in range(_ROWS)], pa.string()).cast(kind)
    if draw.random() < 0.3:
        documents = pa.array([[f"document {number}", f"second {number}"] for number in range(_ROWS)])
    else:
        documents = pa.array([f"document {number}" for number in range(_ROWS)])
    return pa.table({"query": queries, "positive": documents})


def _write(table: pa.Table, path: Path, draw: random.Random) -> None:
    pq.write_table(
        table,
        path,
        row_group_size=4,
        compression=draw.choice(("none", "snappy", "zstd", "gzip")),
        use_dictionary=draw.random() < 0.5,
        data_page_version=draw.choice(("1.0", "2.0")),
    )


def _parquet_rows(path: Path) -> list[Mapping[str, Any] | None]:  # Any: a cell
    """Every row; None for those that pyarrow refuses, by themselves or with their row group."""
    rows: list[Mapping[str, Any] | None] = []
    try:
        file = pq.ParquetFile(path)
        for number in range(file.num_row_groups):
            rows += _group_rows(file, number)
    except Exception:  # noqa: BLE001 - pyarrow raises what it likes
        return []
    return rows


def _group_rows(file: pq.ParquetFile, number: int) -> list[Mapping[str, Any] | None]:  # Any: a cell
    num_rows = file.metadata.row_group(number).num_rows
    try:
        table = file.read_row_group(number)
    except Exception:  # noqa: BLE001 - as above
        return [None] * num_rows
    return [_row_or_none(table.slice(row, 1)) for row in range(num_rows)]


def _row_or_none(table: pa.Table) -> Mapping[str, Any] | None:  # Any: a cell
    try:
        return table.to_pylist()[0]
    except Exception:  # noqa: BLE001 - as above
        return None


def _arrow_rows(path: Path) -> list[Mapping[str, Any] | None]:  # Any: a cell
    if not all(file.is_file() for file in path.iterdir()):
        return []  # a pipe would be waited for
    try:
        with pa.memory_map(str(next(path.glob("*.arrow")))) as source:
            return pa.ipc.open_stream(source).read_all().to_pylist()
    except Exception:  # noqa: BLE001 - as above
        return []


def _numbered(path: Path, rows: list[Mapping[str, Any] | None]) -> Reference:  # Any: a cell
    return [(f"{path.name}:{number}", None if row is None else _pair(row)) for number, row in enumerate(rows, start=1)]


def _pair(row: Mapping[str, Any]) -> Pair | None:  # Any: a cell
    query, positive = row.get("query"), row.get("positive")
    texts = positive if isinstance(positive, list) else [positive]
    if not all(isinstance(text, str) and text.strip() for text in (query, *texts)) or not texts:
        return None
    return str(query), tuple(texts)
