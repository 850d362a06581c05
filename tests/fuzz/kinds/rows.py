"""JSON lines, JSON lists, CSV and TSV files with damage, read as text pairs. The reference knows only json and csv."""

import csv
import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fuzz.mutations import ODD_VALUES, mutate_json, mutate_text
from tests.fuzz.reading import Pair, Reference, first_texts, judge_texts
from tests.fuzz.verdict import Verdict
from tests.tiny import tiny_bert
from vembed.model.modeling import VisualRetrievalModel

_WORDS = "red shoe 27\" größe 靴 cat, dog 'quoted' new\tline a\\b {x} [y] 007 NA null é".split(" ")


class Rows:
    """Files of six to twelve rows."""

    def __init__(self, folder: Path) -> None:
        self._model = VisualRetrievalModel.from_pretrained(tiny_bert(folder / "bert"))

    def try_one(self, draw: random.Random, folder: Path) -> Verdict:
        """One file in one of four formats, now and then without damage."""
        ending = draw.choice((".jsonl", ".jsonl", ".json", ".csv", ".tsv"))
        rows = [_row(draw, number, ending) for number in range(draw.randint(6, 12))]
        path = folder / f"rows{ending}"
        path.write_bytes(_WRITERS[ending](rows, draw))
        return judge_texts(path, self._model, REFERENCES[ending](path))


def _row(draw: random.Random, number: int, ending: str) -> dict[str, object]:
    """A row whose texts say its number, so that a wrong pair shows."""
    row: dict[str, object] = {
        "query": f"query {number} {draw.choice(_WORDS)}",
        "positive": f"document {number} {draw.choice(_WORDS)}",
    }
    if ending in {".csv", ".tsv"}:
        return {name: str(text).replace("\t", " ") if ending == ".tsv" else text for name, text in row.items()}
    if draw.random() < 0.3:
        row["positive"] = [row["positive"], f"second document {number}"]
    if draw.random() < 0.3:
        row["negatives"] = [f"negative {number}", {"text": f"other negative {number}"}]
    if draw.random() < 0.2:
        row["query"] = {"text": row["query"]}
    if draw.random() < 0.2:
        row["group"] = draw.choice((number // 2, f"group {number // 2}", 1.0 * number))
    return row


def _json_texts(rows: list[dict[str, object]], draw: random.Random) -> list[str]:
    """The rows as JSON, of which one to three are odd in a value, in half the cases."""
    texts = [json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows]
    if draw.random() < 0.5:
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(rows))
            texts[at] = mutate_json(rows[at], draw) if draw.random() < 0.8 else draw.choice(ODD_VALUES)
    return texts


def _damaged(text: str, draw: random.Random) -> bytes:
    return mutate_text(text, draw) if draw.random() < 0.5 else text.encode("utf-8", "surrogatepass")


def _json_lines(rows: list[dict[str, object]], draw: random.Random) -> bytes:
    end = draw.choice(("\n", "\n", "\r\n", "\n\n"))
    return _damaged("".join(text + end for text in _json_texts(rows, draw)), draw)


def _json_list(rows: list[dict[str, object]], draw: random.Random) -> bytes:
    between = draw.choice((",", ",\n", " ,\n  "))
    return _damaged("[" + between.join(_json_texts(rows, draw)) + "]", draw)


def _csv_lines(rows: list[dict[str, object]], draw: random.Random) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(
        text,
        list(rows[0]),
        lineterminator=draw.choice(("\n", "\r\n")),
        quoting=draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    )
    writer.writeheader()
    writer.writerows(rows)
    return _damaged(text.getvalue(), draw)


def _tsv_lines(rows: list[dict[str, object]], draw: random.Random) -> bytes:
    """Texts with tabs between them, and no cell quoted, as most exports write them."""
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    return _damaged("".join(f"{line}\n" for line in lines), draw)


def _reference_pair(row: object) -> Pair | None:
    """What a row says by the documentation: None where it says nothing sensible."""
    if not isinstance(row, dict):
        return None
    query, positive = row.get("query"), row.get("positive")
    query_texts = first_texts(query if isinstance(query, list) else [query])
    positive_texts = first_texts(positive if isinstance(positive, list) else [positive])
    return (
        None
        if query_texts is None or len(query_texts) != 1 or positive_texts is None
        else (query_texts[0], positive_texts)
    )


def _json_or_none(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_lines_reference(path: Path) -> Reference:
    """Every line that is not blank."""
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [
        (f"{path.name}:{number}", _reference_pair(_json_or_none(line.decode("utf-8", "replace"))))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def json_list_reference(path: Path) -> Reference:
    """Every object of the list; of a file that is no list, every line."""
    text = path.read_bytes().decode("utf-8", "replace").removeprefix("\ufeff")
    if not text.lstrip(" \t\r\n").startswith("["):
        return json_lines_reference(path)
    values = _json_or_none(text)
    return [("", _reference_pair(row)) for row in values] if isinstance(values, list) else []


def csv_reference(path: Path) -> Reference:
    """Every record with the line where it starts, as the csv module reads it."""
    text = path.read_bytes().decode("utf-8", "replace").removeprefix("\ufeff")
    lines = [f"{one}\n" for one in text.split("\n")]  # a lone carriage return ends no line
    lines[-1] = lines[-1].removesuffix("\n")
    reader, rows, line = csv.reader(lines, strict=True), [], 1
    try:
        for row in reader:
            if row:
                rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error:
        pass
    return _table(rows, path)


def tsv_reference(path: Path) -> Reference:
    """Every line, cut at its tabs."""
    text = path.read_bytes().decode("utf-8", "replace").removeprefix("\ufeff")
    lines = enumerate(text.split("\n"), start=1)
    return _table([(number, line.removesuffix("\r").split("\t")) for number, line in lines if line.strip("\r")], path)


def _table(rows: list[tuple[int, list[str]]], path: Path) -> Reference:
    (_, header), *others = rows or [(1, [])]
    names = [name.strip() for name in header]
    return [(f"{path.name}:{line}", _cells_pair(names, cells)) for line, cells in others]


def _cells_pair(names: list[str], cells: list[str]) -> Pair | None:
    if len(names) != len(cells):
        return None
    row: dict[str, str] = {}
    for name, cell in zip(names, cells, strict=True):
        row.setdefault(name, cell)
    return _reference_pair(row)


REFERENCES: Mapping[str, Callable[[Path], Reference]] = {
    ".jsonl": json_lines_reference,
    ".json": json_list_reference,
    ".csv": csv_reference,
    ".tsv": tsv_reference,
}
_WRITERS: Mapping[str, Callable[[list[dict[str, object]], random.Random], bytes]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _csv_lines,
    ".tsv": _tsv_lines,
}
