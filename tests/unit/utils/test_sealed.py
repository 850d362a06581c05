"""A file is what was written, or is refused by its name."""

import json
from contextlib import suppress

import pytest

from vembed.errors import CheckpointError
from vembed.utils.sealed import read_sealed, sealed, write_sealed

VALUES = {"step": 10, "loader": {"places": [3, 4]}, "loss": 0.1, "name": "größe", "best": None, "by step": {"2": 1.5}}


def test_what_was_written_comes_back(tmp_path):
    file = tmp_path / "state.json"
    write_sealed(file, VALUES)
    assert read_sealed(file) == VALUES
    write_sealed(file, {"places": (1, 2), "steps": {10: "a", 9: "b"}, "nan": float("inf"), "path": "\udcff"})
    assert read_sealed(file) == {
        "places": [1, 2],
        "steps": {"10": "a", "9": "b"},
        "nan": float("inf"),
        "path": "\udcff",
    }
    assert list(tmp_path.iterdir()) == [file]


def test_spaces_and_the_order_of_keys_say_nothing(tmp_path):
    file = tmp_path / "state.json"
    file.write_text(json.dumps(dict(reversed(sealed(VALUES).items()))))
    assert read_sealed(file) == VALUES


def test_a_file_of_an_earlier_version_is_believed(tmp_path):
    file = tmp_path / "state.json"
    file.write_text(json.dumps(VALUES))
    assert read_sealed(file) == VALUES


def test_no_flipped_bit_changes_what_is_read(tmp_path):
    file = tmp_path / "state.json"
    write_sealed(file, VALUES)
    whole, accepted = file.read_bytes(), []
    for position in range(len(whole)):
        for bit in range(8):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            with suppress(CheckpointError):
                accepted.append(read_sealed(file))
    assert len(accepted) < len(whole)  # a space for another, or a letter of "checksum"
    assert all({key: found[key] for key in VALUES} == VALUES for found in accepted)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"3", b"null", b'"text"', b"\xff\xfe", b"{}}", '{"a": 1}'.encode("utf-16")),
        b"[" * 200_000,
        b'{"a": ' * 200_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"step": 11, "checksum": "3425e0fa12428ac3"}',
        b'{"step": 3, "checksum": null}',
    ],
)
def test_what_is_no_such_file_is_refused_by_its_name(tmp_path, content):
    file = tmp_path / "state.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        read_sealed(file)


def test_a_file_that_is_missing_or_no_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"state\.json is damaged or missing"):
        read_sealed(tmp_path / "state.json")
    (tmp_path / "state.json").mkdir()
    with pytest.raises(CheckpointError, match=r"state\.json is damaged or missing"):
        read_sealed(tmp_path / "state.json")
