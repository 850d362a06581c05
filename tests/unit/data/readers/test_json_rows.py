"""JSON and JSONL: each row with its own line, and every broken file refused with the line that breaks it."""

import json
import os
import pickle

import pytest

from tests.pictures import write_jsonl
from vembed.data.readers import source_file, text_rows
from vembed.data.readers.json_rows import has_key, open_json
from vembed.errors import DataError

ROWS = [{"query": "a"}, {"query": "ü 日本 \u2028 \x85 end", "positive": ["b", "c"]}, {"query": "c", "positive": "d"}]


def _file(tmp_path, text, name="data.jsonl"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def _all(rows):
    return [rows[index] for index in range(len(rows))]


def test_lines_are_rows_and_columns_may_change_their_type(tmp_path):
    rows = open_json(write_jsonl(tmp_path / "data.jsonl", ROWS))
    assert _all(rows) == ROWS
    assert rows.columns == ("query", "positive")


def test_blank_lines_are_no_rows_and_do_not_shift_the_line_numbers(tmp_path):
    text = '\n\n{"query": "a"}\n   \n\t{"query": "b"}\r\n\r\n{"query": "c"}'
    path = _file(tmp_path, text)
    rows = open_json(path)
    assert [row["query"] for row in _all(rows)] == ["a", "b", "c"]
    assert [rows.origin(index) for index in range(3)] == [f"{path}:3", f"{path}:5", f"{path}:7"]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n \n"])
def test_the_last_line_counts_with_and_without_a_newline(tmp_path, end):
    assert len(open_json(_file(tmp_path, '{"query": "a"}\n{"query": "b"}' + end))) == 2


def test_a_byte_order_mark_is_skipped(tmp_path):
    for name, text in (("a.jsonl", '{"query": "a"}'), ("b.json", '[{"query": "a"}]')):
        assert open_json(_file(tmp_path, b"\xef\xbb\xbf" + text.encode(), name))[0] == {"query": "a"}


@pytest.mark.parametrize("broken", ['{"query": "a"', "{'query': 'a'}", "query", '{"query": "a"} {"query": "b"}', "{"])
def test_a_broken_line_is_refused_with_its_number_and_the_others_are_read(tmp_path, broken):
    path = write_jsonl(tmp_path / "data.jsonl", [*ROWS, broken, {"query": "z"}])
    rows = open_json(path)
    with pytest.raises(DataError, match=r"data\.jsonl:4: broken JSON"):
        rows[3]
    assert rows[4] == {"query": "z"}


@pytest.mark.parametrize("value", ["3", '"text"', "null", "[1, 2]"])
def test_a_line_that_is_no_object_is_refused(tmp_path, value):
    rows = open_json(write_jsonl(tmp_path / "data.jsonl", [{"query": "a"}, value]))
    with pytest.raises(DataError, match=r"data\.jsonl:2: a row is an object"):
        rows[1]


def test_json_nested_beyond_reason_is_a_data_error(tmp_path):
    rows = open_json(write_jsonl(tmp_path / "data.jsonl", [{"query": "a"}, '{"query": ' + "[" * 200_000]))
    with pytest.raises(DataError, match=r"data\.jsonl:2: broken JSON"):
        rows[1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "is empty"),
        ("\n", "holds blank lines only; a row is an object"),
        (" \r\n\n", "holds blank lines only; a row is an object"),
        ("[]", "holds an empty list; a row is an object"),
        (" [ ] \n", "holds an empty list; a row is an object"),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_file_without_rows_is_refused(tmp_path, text, found, name):
    with pytest.raises(DataError, match=rf"data\.jsonl?: the file {found}"):
        open_json(_file(tmp_path, text, name))


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path):
    good = '{"query": "ü"}\n'.encode()
    for encoded in ('{"query": "ü"}'.encode("latin-1"), b'{"query": "\xff"}'):
        with pytest.raises(DataError, match=r"data\.jsonl:3: not UTF-8"):
            open_json(_file(tmp_path, good * 2 + encoded + b"\n" + good))
    with pytest.raises(DataError, match=r"data\.jsonl:2: not UTF-8"):
        open_json(_file(tmp_path, good + "ü".encode()[:1]))


def test_chunk_borders_inside_lines_and_characters_change_nothing(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "data.jsonl", ROWS * 5)
    whole = open_json(path)
    broken = _file(tmp_path, (tmp_path / "data.jsonl").read_bytes() + b'{"query": "\xff"}', "broken.jsonl")
    num_sizes = 0
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr(text_rows, "_CHUNK_BYTES", size)
        rows = open_json(path)
        assert _all(rows) == _all(whole)
        with pytest.raises(DataError, match=r"broken\.jsonl:16: not UTF-8"):
            open_json(broken)
        num_sizes += 1
    assert num_sizes == 5


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_objects_is_rows_with_the_line_where_each_starts(tmp_path, indent):
    path = _file(tmp_path, "\n" + json.dumps(ROWS, ensure_ascii=False, indent=indent) + "\n", "data.json")
    rows = open_json(path)
    assert _all(rows) == ROWS
    lines = [2, 2, 2] if indent is None else [3, 6, 13]
    places = [f"{path}: row {index + 1} (line {line})" for index, line in enumerate(lines)]
    assert [rows.origin(index) for index in range(3)] == places
    assert [rows.number(index) for index in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "row", "line"),
    [
        ('[{"query": "a"},\n {"query": "b"\n]', 2, 3),
        ('[{"query": "a"}\n {"query": "b"}]', 1, 2),
        ('[{"query": "a"},\n {"query": "b"}', 2, 2),
        ('[{"query": "a"},\n]', 2, 2),
        ('[{"query": "a"},\n 3]', 2, 2),
        ('[{"query": "a"}]\n{"query": "b"}', 1, 1),
        ('[{"query": "a"},{"query": ' + "7" * 5000 + "}]", 2, 1),
        ('[{"query": "a"},{"query": ' + "[" * 100_000 + "}]", 2, 1),
        ("[", 1, 1),
        ("[,]", 1, 1),
    ],
)
def test_a_broken_list_is_refused_with_row_and_line(tmp_path, text, row, line):
    with pytest.raises(DataError, match=rf"data\.json: row {row} \(line {line}\): "):
        open_json(_file(tmp_path, text, "data.json"))


def test_a_key_far_down_a_long_file_is_found(tmp_path):
    rows = [{"query": str(number)} for number in range(3000)]
    rows[1234] = {"query": "a", "négatives": []}
    opened = open_json(write_jsonl(tmp_path / "data.jsonl", rows))
    assert has_key(opened, "négatives")
    assert not has_key(opened, "negatives")
    escaped = open_json(_file(tmp_path, "\n".join(json.dumps(row) for row in rows), "escaped.jsonl"))
    assert has_key(escaped, "négatives")


def test_rows_travel_to_another_process_without_their_map(tmp_path):
    rows = open_json(write_jsonl(tmp_path / "data.jsonl", ROWS))
    assert _all(pickle.loads(pickle.dumps(rows))) == ROWS


def test_a_row_is_parsed_only_when_asked_for(tmp_path):
    lines = [json.dumps({"query": "x" * 50})] * 50_000
    lines[30_001] = "broken"
    rows = open_json(write_jsonl(tmp_path / "data.jsonl", lines))
    assert len(rows) == 50_000
    with pytest.raises(DataError, match="30002"):
        rows[30_001]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("7" * 5000, "broken JSON: Exceeds the limit"),
        ("[" * 100_000, "broken JSON: nested too deeply"),
        ('{"text": "a", "text": "b"}', "the key 'text' occurs twice in one object; keep one"),
        ('"a", "query": "b"', "the key 'query' occurs twice"),
    ],
)
def test_what_json_would_pass_over_or_fail_at_is_a_bad_row(tmp_path, cell, words):
    rows = open_json(_file(tmp_path, f'{{"query": "fine"}}\n{{"query": {cell}}}\n{{"query": "fine"}}\n'))
    assert rows[0] == rows[2] == {"query": "fine"}
    with pytest.raises(DataError, match=rf"data\.jsonl:2: .*{words}"):
        rows[1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"query": "a"}\n'.encode("utf-16"), "the file is UTF-16"),
        ('{"query": "a"}\n'.encode("utf-32"), "the file is UTF-32"),
        ('{"query": "a"}\n'.encode("utf-16-le"), "full of zero bytes, as UTF-16 without"),
        (b"\x1f\x8b\x08\x00", r"compressed \(gzip\)"),
        (b'{"query": "a"}\r{"query": "b"}\r', "lines end with carriage returns alone"),
    ],
)
def test_a_file_of_another_encoding_is_refused_by_its_name(tmp_path, data, words):
    with pytest.raises(DataError, match=rf"data\.jsonl: .*{words}"):
        open_json(_file(tmp_path, data))


def test_a_file_that_takes_the_place_of_an_open_one_changes_nothing(tmp_path):
    rows = open_json(write_jsonl(tmp_path / "data.jsonl", ROWS))
    packed = pickle.dumps(rows)
    (tmp_path / "other.jsonl").write_text('{"query": "other"}\n' * 9)
    (tmp_path / "other.jsonl").replace(tmp_path / "data.jsonl")
    assert _all(rows) == ROWS
    with pytest.raises(DataError, match=r"data\.jsonl: the file was replaced or written to"):
        pickle.loads(packed)


@pytest.mark.parametrize("content", ["", '{"query": "other"}\n' * 9])
def test_an_open_file_that_is_written_to_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.setattr(source_file, "_SECONDS_BETWEEN_LOOKS", 0)
    rows = open_json(write_jsonl(tmp_path / "data.jsonl", ROWS))
    (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"data\.jsonl: the file was replaced or written to"):
        rows[0]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "data.jsonl")
    with pytest.raises(DataError, match=r"data\.jsonl: .*it is a pipe, not a regular file"):
        open_json(str(tmp_path / "data.jsonl"))
