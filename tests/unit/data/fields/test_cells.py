"""What is absent, and which texts are lists."""

import numpy as np
import pytest

from vembed.data.fields.cells import describe_cell, is_absent, parse_list
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
        "['a', 3]",
        '{"a": 1}',
        "[__import__('os')]",
    ],
)
def test_a_text_that_only_looks_like_a_list_stays_a_text(text):
    assert list(parse_list(text, "")) == [text]


def test_lists_as_numpy_prints_them_are_refused_and_not_glued_together():
    printed = str(np.array(["a.png", "b.png"]))
    assert printed == "['a.png' 'b.png']"
    with pytest.raises(DataError, match=r"x\.csv:3: negatives: .*commas"):
        parse_list(printed, "x.csv:3: negatives")
    with pytest.raises(DataError, match="commas"):
        parse_list("['a'\n 'b']", "")


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
