"""YAML is read as people expect, and what is wrong with a file has its line."""

import math

import pytest

from vembed.configuration.yaml_text import dump_value, parse_value, parse_yaml, read_yaml
from vembed.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1E5", 100_000),
        ("1.5e6", 1_500_000),
        ("-3", -3),
        ("1_000", 1000),
        ("0123", 123),
        (".5", 0.5),
        ("3.", 3.0),
        ("3.0", 3.0),
        (".inf", math.inf),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ("null", None),
        ("none", "none"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x1f", "0x1f"),
        ("e5", "e5"),
        ("'2e-5'", "2e-5"),
        ("[1, 2e-5, a]", [1, 2e-5, "a"]),
        ("{a: 1}", {"a": 1}),
        ("a: b: c", "a: b: c"),
        ("[1", "[1"),
    ],
)
def test_a_scalar_means_what_it_looks_like(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        2e-5,
        "2e-5",
        "no",
        "null",
        "",
        "x: y",
        "a\nb",
        "# x",
        None,
        True,
        3,
        1.0,
        [1, "1"],
        {"a": [None, {"b": "1e5"}]},
        "ü",
    ],
)
def test_a_dumped_value_is_read_back(value):
    text = dump_value(value)
    assert "\n" not in text or "\n" in str(value)
    assert parse_yaml(f"key: {text}  # comment").values["key"] == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "my.yaml:3: a is set twice (first in line 1); keep one"),
        ("a:\n  - {b: 1,\n     b: 2}\n", "my.yaml:3: b is set twice (first in line 2); keep one"),
        ("a: [1\nb: 2\n", "my.yaml:2: not valid YAML: expected ',' or ']'"),
        ("a: 1\n b: 2\n", "my.yaml:2: not valid YAML"),
        ("- a\n- b\n", "my.yaml:1: the file must hold `key: value` lines"),
        ("just text", "my.yaml:1: the file must hold `key: value` lines"),
        ("a: !!python/object:os.system x", "my.yaml:1: not valid YAML: could not determine a constructor"),
        ("a: \0", "my.yaml: not valid YAML: unacceptable character"),
        ("a: &x [*x]", "my.yaml: not valid YAML"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(text, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml("my.yaml")
    assert str(caught.value).startswith(problem)


def test_every_key_knows_its_line():
    document = parse_yaml("# comment\na: 1\n\nb:\n  - x: 1\n    y: 2\n  - z\n", "my.yaml")
    places = [("a",), ("b",), ("b", 0, "y"), ("b", 0, "new"), ("b", 1), ("c",)]
    assert [document.origin(place) for place in places] == [
        "my.yaml:2", "my.yaml:4", "my.yaml:6", "my.yaml:5", "my.yaml:7", "my.yaml"
    ]  # fmt: skip


def test_merged_and_repeated_parts_are_allowed():
    text = "base: &base {x: 1, y: 2}\nother: {<<: *base, y: 3}\n"
    assert parse_yaml(text).values["other"] == {"x": 1, "y": 3}


def test_an_empty_file_holds_nothing(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_yaml(tmp_path / "empty.yaml").values == {}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "my.yaml").write_bytes(b"\xef\xbb\xbfepochs: 3\n")
    assert read_yaml(tmp_path / "my.yaml").values == {"epochs": 3}


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as a YAML file"):
        read_yaml(tmp_path / "my.yaml")


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.parquet"])
def test_data_in_the_place_of_the_settings_is_recognised(tmp_path, name):
    (tmp_path / name).write_text("query,positive\n")
    with pytest.raises(ConfigError, match=f"is data, not a YAML file; write --data_path .*{name}"):
        read_yaml(tmp_path / name)
