"""JSON files from outside: what is missing, what is no JSON or no object, and lines of which one is damaged."""

import os

import pytest

from vembed.errors import CheckpointError, ModelError
from vembed.utils.json_files import read_json, read_json_lines, read_json_object


def test_what_is_missing_is_none_and_what_is_there_is_read(tmp_path):
    file = tmp_path / "a.json"
    assert read_json(file, ModelError) is None
    assert read_json_object(file / "below", ModelError) is None
    assert read_json_lines(file, ModelError) == []
    file.write_text('{"a": [1, "ä"]}\n', encoding="utf-8")
    assert read_json(file, ModelError) == read_json_object(file, ModelError) == {"a": [1, "ä"]}
    assert read_json_lines(file, ModelError) == [{"a": [1, "ä"]}]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_what_is_no_json_is_refused_by_its_place(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.json is broken: "):
        read_json(file, ModelError, fault="is broken")
    if content:
        with pytest.raises(CheckpointError, match=r"a\.json:1 is damaged; mend it: "):
            read_json_lines(file, CheckpointError, remedy="; mend it")


def test_another_value_than_an_object_is_refused(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("[]")
    assert read_json(file, ModelError) == []
    with pytest.raises(ModelError, match=r"a\.json cannot be read: it holds no JSON object, but list"):
        read_json_object(file, ModelError)
    file.write_text("{}\n3\n")
    with pytest.raises(ModelError, match=r"a\.json:2 is damaged: it holds no JSON object, but int"):
        read_json_lines(file, ModelError)


def test_half_a_line_is_passed_over_where_it_may_be(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"a": \n{"a": 2}\n{"a"')
    assert read_json_lines(file, ModelError, last_may_be_half=True) == [{"a": 1}, {"a": 2}]
    with pytest.raises(ModelError, match=r"a\.jsonl:2 is damaged"):
        read_json_lines(file, ModelError)


def test_a_pipe_is_not_waited_for_and_a_large_file_not_read(tmp_path):
    file = tmp_path / "a.json"
    os.mkfifo(file)
    for read in (read_json, read_json_object, read_json_lines):
        with pytest.raises(ModelError, match="it is a pipe"):
            read(file, ModelError)
    file.unlink()
    file.write_text("{}" + " " * 100)
    with pytest.raises(ModelError, match="over 100 bytes"):
        read_json(file, ModelError, max_bytes=100)
