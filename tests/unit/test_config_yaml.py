"""YAML is read as people expect, and what is wrong with a file has its line."""

import math
import os

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
        ("a: !!python/object:os.system x", "my.yaml:1: not valid YAML: the tag '!"),
        ("b: 1\na: \0", "my.yaml:2: not valid YAML: it holds the character '\\x00'"),
        ("a: &x [*x]", "my.yaml:1: not valid YAML: the alias *x stands within what it repeats"),
        ("a: *x", "my.yaml:1: not valid YAML: found undefined alias 'x'"),
        ("b: 1\na: !!float abc", "my.yaml:2: not valid YAML: 'abc' is no number"),
        ("a: !!int x", "my.yaml:1: not valid YAML: 'x' is no number"),
        ("a: !!bool maybe", "my.yaml:1: not valid YAML: 'maybe' is neither true nor false"),
        ("a: !!null 5", "my.yaml:1: not valid YAML: '5' is not null"),
        ("a: !!timestamp 2020-99-99", "my.yaml:1: not valid YAML: the tag '!"),
        ("a: !!binary xx", "my.yaml:1: not valid YAML: the tag '!"),
        ("a: !!set {x}", "my.yaml:1: not valid YAML: the tag '!"),
        ("a: !own x", "my.yaml:1: not valid YAML: the tag '!"),
        ("!!set {a: 1}", "my.yaml:1: not valid YAML: the tag '!"),
        ("!!str {a: 1}", "my.yaml:1: not valid YAML: expected a scalar node"),
        ("b: 1\na: " + "7" * 5000, "my.yaml:2: not valid YAML: a number of 5,000 digits"),
        ("b: 1\na: " + "[" * 3000, "my.yaml:2: not valid YAML: values are nested more than 50 deep"),
        ("a: " + "{a: " * 3000, "my.yaml:1: not valid YAML: values are nested more than 50 deep"),
        ("? " * 3000, "my.yaml:1: not valid YAML: values are nested more than 50 deep"),
        ('a: "\\UFFFFFFFF"', "my.yaml:1: not valid YAML: "),
        ("%YAML " + "9" * 5000 + ".1\n---\na: 1", "my.yaml:1: not valid YAML: Exceeds the limit"),
        ("a: 1\n---\nb: 2", "my.yaml:2: not valid YAML: but found another document"),
        ("? [a]\n: 1", "my.yaml:1: not valid YAML: found unhashable key"),
        ("<<: 5", "my.yaml:1: not valid YAML: expected a mapping"),
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


@pytest.mark.parametrize("part", ["[x, x, x, x, x, x, x, x, x, x]", "{k: 1, l: 2, m: 3}"])
@pytest.mark.parametrize("use", ["[{}]", "{{<<: [{}]}}", "{{0: {0}}}"])
def test_aliases_that_nest_until_a_page_stands_for_millions_are_refused(part, use):
    lines = [f"a: &a {part}"]
    for name, before in zip("bcdefghij", "abcdefghi", strict=True):
        aliases = ", ".join(f"*{before}" for _ in range(10))
        if "0:" in use:
            aliases = "{" + ", ".join(f"k{number}: *{before}" for number in range(10)) + "}"
        lines.append(f"{name}: &{name} {use.format(aliases)}")
    text = "\n".join(lines)
    assert len(text) < 2000
    with pytest.raises(ConfigError, match=r"my.yaml:[4-6]: not valid YAML: it stands for more than 50,000 values"):
        parse_yaml(text, "my.yaml")
    assert parse_value("{" + text.replace("\n", ", ") + "}") != {}  # a text, which no key takes for a mapping


def test_merged_and_repeated_parts_are_allowed():
    text = "base: &base {x: 1, y: 2}\nother: {<<: *base, y: 3}\n"
    assert parse_yaml(text).values["other"] == {"x": 1, "y": 3}


def test_an_empty_file_holds_nothing(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_yaml(tmp_path / "empty.yaml").values == {}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "my.yaml").write_bytes(b"\xef\xbb\xbfepochs: 3\n")
    assert read_yaml(tmp_path / "my.yaml").values == {"epochs": 3}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff\xfe\x00", "my.yaml:1: cannot be read as a YAML file: it is UTF-16; save it as UTF-8"),
        ("epochs: 3".encode("utf-16"), "my.yaml:1: cannot be read as a YAML file: it is UTF-16"),
        (b"epochs: 3\nmodel_name: b\xe9b\xe9", "my.yaml:2: cannot be read as a YAML file: it is no UTF-8"),
        (b"a: " + b"x" * 2_000_000, "my.yaml: cannot be read as a YAML file: it holds over 1,048,576 bytes"),
    ],
    ids=["bom", "utf-16", "latin-1", "large"],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, problem):
    (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path / "my.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/{problem}")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, what in [(tmp_path / "pipe.yaml", "a pipe"), (tmp_path, "a folder"), ("/dev/zero", "a device")]:
        with pytest.raises(ConfigError, match=f"cannot be read as a YAML file: it is {what}, not a regular file"):
            read_yaml(path)
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(ConfigError, match="cannot be read as a YAML file"):
            read_yaml(name)


def test_a_key_twice_on_the_command_line_is_refused():
    with pytest.raises(ConfigError, match="command line:1: vision is set twice"):
        parse_value("{vision: 1e-5, vision: 2e-5}")


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.parquet"])
def test_data_in_the_place_of_the_settings_is_recognised(tmp_path, name):
    (tmp_path / name).write_text("query,positive\n")
    with pytest.raises(ConfigError, match=f"is data, not a YAML file; write --data_path .*{name}"):
        read_yaml(tmp_path / name)
