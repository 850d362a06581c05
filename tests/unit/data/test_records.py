"""Rows into examples: the mode decides, nothing is guessed, and a row that does not fit says why."""

from decimal import Decimal

import pytest

from tests.pictures import make_picture
from vembed.data.records import RowReader, check_column_mapping
from vembed.errors import ConfigError, DataError

ORIGIN = "train.jsonl:17"


def _read(row, mode="t2t", **options):
    return RowReader(mode, **options)(row, ORIGIN)


def _texts(items):
    return [item.text for item in items]


def _paths(items):
    return [[source.path for source in item.images] for item in items]


def _refusal(row, mode="t2t", **options):
    with pytest.raises(DataError) as caught:
        _read(row, mode, **options)
    assert str(caught.value).startswith(f"{ORIGIN}: ")
    return str(caught.value)[len(ORIGIN) + 2 :]


def test_a_pair_of_texts():
    example = _read({"query": "a", "positive": "b"})
    assert (example.query.text, _texts(example.positives)) == ("a", ["b"])
    assert (example.negatives, example.group, example.origin) == ((), None, ORIGIN)


def test_a_text_with_slashes_is_a_text_and_a_path_without_is_a_path():
    example = _read({"query": "either/or: a/b.png", "positive": "picture"}, "t2i")
    assert (example.query.text, example.query.images) == ("either/or: a/b.png", ())
    assert _paths(example.positives) == [["picture"]]
    assert example.positives[0].text is None


@pytest.mark.parametrize("mode", ["t2i", "i2t", "i2i", "t2t", "m2i", "m2t", "t2m", "i2m", "m2m"])
def test_every_mode_gives_each_side_its_kind(mode):
    cells = {"t": "words", "i": "a.png", "m": {"text": "words", "image": "a.png"}}
    example = _read({"query": cells[mode[0]], "positive": cells[mode[2]], "negatives": [cells[mode[2]]]}, mode)
    for kind, item in ((mode[0], example.query), (mode[2], example.positives[0]), (mode[2], example.negatives[0])):
        assert (item.text is not None, len(item.images)) == {"t": (True, 0), "i": (False, 1), "m": (True, 1)}[kind]


def test_several_positives_and_negatives_keep_their_order():
    example = _read({"query": "q", "positive": ["a", "b"], "negatives": ["c", "d", "e"]})
    assert _texts(example.positives) == ["a", "b"]
    assert _texts(example.negatives) == ["c", "d", "e"]


def test_one_negative_may_stand_alone():
    assert _texts(_read({"query": "q", "positive": "p", "negatives": "n"}).negatives) == ["n"]


@pytest.mark.parametrize("absent", [None, [], "", " ", float("nan"), ()])
def test_absent_negatives_and_groups_are_absent(absent):
    example = _read({"query": "q", "positive": "p", "negatives": absent, "group": absent})
    assert (example.negatives, example.group) == ((), None)


@pytest.mark.parametrize("absent", [None, "", "  \n", [], [None], [""], float("nan"), [float("nan")]])
@pytest.mark.parametrize("side", ["query", "positive"])
@pytest.mark.parametrize("mode", ["t2t", "i2i", "m2m"])
def test_an_absent_required_side_is_a_bad_row(absent, side, mode):
    cell = {"t": "a", "i": "a.png", "m": {"text": "a", "image": "a.png"}}[mode[0]]
    message = _refusal({**{"query": cell, "positive": cell}, side: absent}, mode)
    assert message.startswith(f"{side}: ")
    assert "needs" in message


def test_null_never_becomes_the_word_none_and_the_word_stays_a_word():
    assert _refusal({"query": "a", "positive": None}) == "positive: is null; retrieval_mode t2t needs a text here"
    assert _read({"query": "None", "positive": "null"}).query.text == "None"


def test_a_missing_column_is_named_with_the_columns_that_exist():
    message = _refusal({"query": "a", "positves": "b"})
    assert message.startswith("positive: is missing; is it 'positves'? The row has: query, positves")
    assert _refusal({"query": "a"}).startswith("positive: is missing. The row has: query")
    assert "column_mapping: {positive: NAME}" in message


@pytest.mark.parametrize("cell", [3, 2.5, True, {"a": 1}, b"bytes", ["a", 3], [["a"]], ["a", None], ["a", ""]])
def test_what_is_no_text_is_a_bad_row(cell):
    assert _refusal({"query": "a", "positive": cell}).startswith("positive")
    assert _refusal({"query": "a", "positive": "b", "negatives": ["ok", cell]}).startswith("negatives[1]: ")


def test_a_list_of_queries_is_refused_and_a_list_of_one_is_not():
    assert _refusal({"query": ["a", "b"], "positive": "p"}) == "query: a row has one query, this one has 2"
    assert _read({"query": ["a"], "positive": "p"}).query.text == "a"


def test_unicode_and_very_long_texts_are_kept_whole():
    text = "Ünïcödé 日本語 🏳️‍🌈 \u202eright to left " + "word " * 100_000
    assert _read({"query": text, "positive": "p"}).query.text == text


def test_images_may_have_a_column_of_their_own():
    row = {"query": "red", "query_image": "a.png", "positive": "words", "positive_image": "b.png"}
    example = _read(row, "m2i")
    assert (example.query.text, _paths([example.query])) == ("red", [["a.png"]])
    assert _paths(example.positives) == [["b.png"]]
    assert _read(row, "t2t").query.images == ()


def test_several_composed_positives_pair_texts_with_images():
    row = {"query": "q", "positive": ["a", "b"], "positive_image": ["a.png", ["b.png", "c.png"]]}
    positives = _read(row, "t2m").positives
    assert _texts(positives) == ["a", "b"]
    assert _paths(positives) == [["a.png"], ["b.png", "c.png"]]
    assert "as many images" in _refusal({**row, "positive_image": ["a.png"]}, "t2m")


def test_several_images_make_one_item():
    row = {"query": {"text": "q", "image": ["a.png", "b.png"]}, "positive": "p"}
    assert _paths([_read(row, "m2t").query]) == [["a.png", "b.png"]]
    row = {"query": "q", "query_image": ["a.png", "b.png"], "positive": "p"}
    assert _paths([_read(row, "m2t").query]) == [["a.png", "b.png"]]


@pytest.mark.parametrize(
    "query",
    [
        "words alone",
        {"text": "a"},
        {"image": "a.png"},
        {"text": "", "image": "a.png"},
        {"text": None, "image": "a.png"},
        {"text": "a", "image": None},
        {"text": "a", "image": []},
        {"text": "a", "image": [None]},
        make_picture(1),
    ],
)
def test_a_composed_item_without_one_of_its_parts_is_a_bad_row(query):
    assert _refusal({"query": query, "positive": "p"}, "m2t").startswith("query: ")


def test_composed_columns_without_one_of_the_parts_are_bad_rows():
    assert _refusal({"query": "a", "query_image": None, "positive": "p"}, "m2t").startswith("query: ")
    assert _refusal({"query": "", "query_image": "a.png", "positive": "p"}, "m2t").startswith("query: ")
    assert _refusal({"query_image": "a.png", "positive": "p"}, "m2t").startswith("query: ")


def test_a_part_that_the_mode_does_not_want_is_refused_and_not_dropped():
    both = {"text": "a", "image": "a.png"}
    assert "use m for text and image" in _refusal({"query": both, "positive": "p"}, "t2t")
    assert "use m for text and image" in _refusal({"query": both, "positive": "p"}, "i2t")
    assert _read({"query": {"text": "a"}, "positive": "p"}).query.text == "a"
    assert "unknown key 'txt'" in _refusal({"query": {"text": "a", "txt": "b"}, "positive": "p"})


def test_groups_are_stable_keys_whatever_type_holds_them():
    keys = [_read({"query": "a", "positive": "b", "group": group}).group for group in ("3", 3, 3.0, "4", "x")]
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 3
    assert all(key >= 0 for key in keys)
    assert _refusal({"query": "a", "positive": "b", "group": ["x"]}).startswith("group: a group is a text or a number")


@pytest.mark.parametrize("group", [float("inf"), Decimal("-inf"), Decimal("1e999")])
def test_a_group_that_is_no_finite_number_is_refused(group):
    assert _refusal({"query": "a", "positive": "b", "group": group}).startswith("group: should be a finite number")


def test_groups_of_large_and_of_decimal_numbers_are_groups():
    keys = [
        _read({"query": "a", "positive": "b", "group": group}).group for group in (10**400, Decimal("3.00"), 3, 2.5)
    ]
    assert keys[1] == keys[2]
    assert len({key for key in keys if key is not None}) == 3


def test_class_is_a_group_and_label_only_when_mapped():
    assert _read({"query": "a", "positive": "b", "class": "x"}).group is not None
    assert _read({"query": "a", "positive": "b", "label": 1}).group is None
    assert _read({"query": "a", "positive": "b", "label": 1}, columns={"group": "label"}).group is not None


def test_a_column_mapping_renames_and_errors_name_both():
    columns = {"query": "caption", "positive": "image_file", "negatives": "others"}
    example = _read({"caption": "a", "image_file": "b.png", "others": ["c.png"]}, "t2i", columns=columns)
    assert example.query.text == "a"
    assert _paths(example.negatives) == [["c.png"]]
    message = _refusal({"caption": " ", "image_file": "b.png"}, "t2i", columns=columns)
    assert message == "query (column 'caption'): is an empty text; retrieval_mode t2i needs a text here"


def test_lists_in_text_are_lists_only_where_files_have_no_lists():
    row = {"query": "['q']", "positive": '["a", "b"]', "negatives": "['c', 'd']"}
    assert _texts(_read(row, lists_in_text=True).positives) == ["a", "b"]
    assert _texts(_read(row, lists_in_text=True).negatives) == ["c", "d"]
    assert _texts(_read(row).positives) == ['["a", "b"]']
    assert _refusal({**row, "positive": "[]"}, lists_in_text=True).startswith("positive: ")
    assert _read({**row, "negatives": "[]"}, lists_in_text=True).negatives == ()


def test_a_query_is_never_parsed_as_a_list():
    assert _read({"query": '["quoted"]', "positive": "p"}, lists_in_text=True).query.text == '["quoted"]'


def test_an_unknown_field_in_the_mapping_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown field 'positives'; did you mean 'positive'"):
        check_column_mapping({"positives": "image"})


def test_a_reversed_mapping_is_recognised():
    with pytest.raises(ConfigError, match=r"looks reversed, write \{query: caption, positive: image\}"):
        RowReader("t2i", {"caption": "query", "image": "positive"})


@pytest.mark.parametrize("field", ["positive", "negatives", "ignore"])
@pytest.mark.parametrize(
    ("cell", "text"), [(["x", None], '["x", null]'), (["x", 3], "['x', 3]"), ([None, "x"], "[nan, 'x']")]
)
def test_a_list_of_a_file_of_texts_is_bad_where_one_of_a_file_with_lists_is(field, cell, text):
    row = {"query": "q", "positive": "p"}
    assert _refusal({**row, field: text}, lists_in_text=True) == _refusal({**row, field: cell})


@pytest.mark.parametrize("empty", ["", "  ", None, float("nan")])
def test_an_empty_group_does_not_hide_the_class(empty):
    row = {"query": "q", "positive": "p", "class": "shoes"}
    assert _read({**row, "group": empty}).group == _read(row).group is not None
    assert _read({**row, "sku": empty}, columns={"group": "sku"}).group is None
    assert _read({**row, "group": "hats"}).group != _read(row).group
