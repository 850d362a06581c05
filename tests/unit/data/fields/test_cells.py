"""What is absent, and which texts are lists."""

import datetime
from decimal import Decimal

import numpy as np
import pytest

from vembed.data.fields.cells import checked_number, checked_text, describe_cell, is_absent, parse_list, parsed_json
from vembed.errors import DataError


@pytest.mark.parametrize("cell", [None, float("nan"), "", "  \t\n", [], ()])
def test_absent_cells(cell):
    assert is_absent(cell)


@pytest.mark.parametrize("cell", ["None", "null", "nan", "NA", "0", 0, False, [None], {}, b""])
def test_words_and_values_are_not_absent(cell):
    assert not is_absent(cell)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("""["it's", 'say "hi"']""", ["it's", 'say "hi"']),
        (' ["ü/日"] ', ["ü/日"]),
        ("[]", []),
        ('["a b", "c,d"]', ["a b", "c,d"]),
    ],
)
def test_lists_written_as_json_or_by_python_are_lists(text, values):
    assert list(parse_list(text, "")) == values


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "[sic] a cat",
        "[1] first",
        "[2020]",
        "[unclosed",
        "a]",
        "[a, b]",
        "[1, 2.5]",
        "[[1], [2]]",
        "[null, see below]",
        "['quoted' words]",
        '{"a": 1}',
        "[__import__('os')]",
    ],
)
def test_a_text_that_only_looks_like_a_list_stays_a_text(text):
    assert list(parse_list(text, "")) == [text]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('["n1", null]', ["n1", None]),
        ("['a', None]", ["a", None]),
        ("['a', nan, 'b']", ["a", None, "b"]),
        ("[nan, <NA>, 'NaT, <NA>']", [None, None, "NaT, <NA>"]),
        ("[NaT,'a']", [None, "a"]),
        ("[null]", [None]),
        ("[None, None]", [None, None]),
        ('["x","y",3]', ["x", "y", 3]),
        ('[["x"], ["y"]]', [["x"], ["y"]]),
        ('[{"text": "a"}]', [{"text": "a"}]),
    ],
)
def test_a_list_is_one_whatever_it_holds_beside_texts(text, values):
    assert parse_list(text, "") == values


def test_lists_as_numpy_prints_them_are_refused_and_not_glued_together():
    printed = str(np.array(["a.png", "b.png"]))
    assert printed == "['a.png' 'b.png']"
    with pytest.raises(DataError, match=r"x\.csv:3: negatives: .*commas"):
        parse_list(printed, "x.csv:3: negatives")
    for text in ("['a'\n 'b']", "['a' 'b', nan]", "['a' None]", "['a' nan 3]", "['a' 'b', 3]"):
        with pytest.raises(DataError, match="commas"):
            parse_list(text, "")


def test_cells_are_named_in_words():
    cells = [None, "", " a ", True, 2.5, [], [1, 2], {"a": 1}]
    words = [describe_cell(cell) for cell in cells]
    assert words == [
        "null",
        "an empty text",
        "a text (' a ')",
        "a truth value (True)",
        "a number (2.5)",
        "an empty list",
        "a list of 2",
        "a dict",
    ]


@pytest.mark.parametrize(
    "number", [10**400, -(10**4000), Decimal("1e999"), Decimal("sNaN"), float("inf"), float("nan")]
)
def test_a_number_beyond_a_float_is_not_finite(number):
    with pytest.raises(DataError, match=r"^x\.jsonl:3: score: should be a finite number, not ") as refused:
        checked_number(number, "x.jsonl:3: score")
    assert len(str(refused.value)) < 120


@pytest.mark.parametrize(
    ("cell", "number"), [(3, 3.0), (True, 1.0), (Decimal("0.5"), 0.5), (np.float32(0.5), 0.5), (np.int64(2), 2.0)]
)
def test_numbers_of_every_kind_are_numbers(cell, number):
    assert checked_number(cell, "x:1") == number


@pytest.mark.parametrize("cell", ["1", b"1", [1], {"a": 1}, None, datetime.date(2020, 1, 1)])
def test_what_is_no_number_is_refused(cell):
    with pytest.raises(DataError, match=r"x:1: should be a number, but is"):
        checked_number(cell, "x:1")


@pytest.mark.parametrize("text", ["\ud800", "a shoe \udfff", "\ud83d and \ude00"])
def test_half_of_a_surrogate_pair_is_no_text(text):
    with pytest.raises(DataError, match="x:1: the text holds half of a surrogate pair") as refused:
        checked_text(text, "x:1")
    str(refused.value).encode()
    assert checked_text("\U0001f600 ü", "x:1") == "\U0001f600 ü"


def test_bytes_in_the_place_of_a_text_are_told_from_one():
    with pytest.raises(DataError, match=r"x:1: should be a text, but is bytes \(b'abc'\); save the column as text"):
        checked_text(b"abc", "x:1")


@pytest.mark.parametrize(
    "text", ["[" * 100_000 + "]" * 100_000, "[" + "7" * 5000 + "]", "[" + "(" * 5000 + "]", "[\0]"]
)
def test_a_list_that_cannot_be_read_is_one_text(text):
    assert parse_list(text, "x:1") == [text]


@pytest.mark.parametrize("text", ["[" * 100_000, "7" * 5000, "{", "a"])
def test_text_that_is_no_json_is_refused_by_what_is_wanted(text):
    with pytest.raises(DataError, match=r"x:1: should be a number, but is"):
        parsed_json(text, "x:1", "a number")
