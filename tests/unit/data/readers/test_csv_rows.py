"""CSV and TSV: cells stay what is written, rows may span lines, and a file whose quotes do not match is refused."""

import pickle

import pytest

from tests.pictures import write_csv
from vembed.data.readers.csv_rows import open_csv
from vembed.errors import DataError


def _open(tmp_path, text, delimiter=","):
    path = tmp_path / "data.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_csv(str(path), delimiter)


def _all(rows):
    return [rows[index] for index in range(len(rows))]


def test_cells_stay_texts_exactly_as_written(tmp_path):
    rows = [
        {"query": "007", "positive": "NA"},
        {"query": "null", "positive": "1e5"},
        {"query": " a ", "positive": "True"},
        {"query": "", "positive": "None"},
    ]
    opened = open_csv(write_csv(tmp_path / "data.csv", rows), ",")
    assert _all(opened) == rows
    assert opened.columns == ("query", "positive")
    assert opened.lists_in_text


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_quotes_commas_newlines_and_unicode_survive(tmp_path, delimiter):
    rows = [
        {"query": f'say "hi", {delimiter} ü\n\nthird line', "positive": "x"},
        {"query": "a\r\nb", "positive": "日本"},
    ]
    assert _all(open_csv(write_csv(tmp_path / "data.csv", rows, delimiter), delimiter)) == rows


def test_line_numbers_survive_rows_of_several_lines_and_blank_lines(tmp_path):
    opened = _open(tmp_path, '\nquery,positive\n"a\nb\nc",1\n\n\nd,2\n"e\n",3\nf,4')
    assert [row["query"] for row in _all(opened)] == ["a\nb\nc", "d", "e\n", "f"]
    assert [int(opened.origin(index).rsplit(":", 1)[1]) for index in range(4)] == [3, 8, 9, 11]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    opened = _open(tmp_path, b"\xef\xbb\xbfquery,positive\r\na,b\r\n")
    assert _all(opened) == [{"query": "a", "positive": "b"}]


def test_header_names_are_stripped_and_of_equal_names_the_first_counts(tmp_path):
    opened = _open(tmp_path, "query, positive ,query\na,b,c\n")
    assert _all(opened) == [{"query": "a", "positive": "b"}]


@pytest.mark.parametrize("row", ["a", "a,b,c", "a,b,"])
def test_a_row_of_another_length_is_a_bad_row_by_line(tmp_path, row):
    opened = _open(tmp_path, f"query,positive\nx,y\n{row}\n")
    assert opened[0] == {"query": "x", "positive": "y"}
    with pytest.raises(DataError, match=r"data\.csv:3: the row has \d cells?, the header has 2"):
        opened[1]


@pytest.mark.parametrize(
    ("text", "line"), [('q,p\na,b\n"open,c\nd,e\n', 3), ('q,p\na,b\n"x"y,c\n', 3), ('"q,p\na,b', 1)]
)
def test_quotes_that_do_not_match_are_refused_with_the_line(tmp_path, text, line):
    with pytest.raises(DataError, match=rf"data\.csv:{line}: broken CSV"):
        _open(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "is empty"),
        ("\n\n", "holds blank lines only; the first line names the columns"),
        ("query,positive\n", "has a header but no rows"),
        ("query,positive", "has a header but no rows"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path, text, found):
    with pytest.raises(DataError, match=rf"data\.csv: the file {found}"):
        _open(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "delimiter", "found"),
    [
        ("query;positive\na, b;c\n", ",", "'query;positive' has semicolons"),
        ('\ufeff\n"query";"positive"\n"a";"b"\n', ",", "has semicolons"),
        ("query\tpositive\na\tb\n", ",", "has tabs"),
        ("query|positive\na|b\n", ",", "has bars"),
        ("query,positive\na,b\n", "\t", "has commas"),
    ],
)
def test_a_file_that_is_separated_in_another_way_is_told_so(tmp_path, text, delimiter, found):
    with pytest.raises(
        DataError, match=rf"data\.csv: the header .*{found} between its columns; a \.csv file has commas"
    ):
        _open(tmp_path, text, delimiter)


@pytest.mark.parametrize("text", ["text\na;b\n", '"a;b"\nx\n', "a;b,c\nx,y\n", '"que\nry",p\nx,y\n'])
def test_another_sign_in_a_cell_or_a_name_is_no_delimiter(tmp_path, text):
    assert len(_open(tmp_path, text)) == 1


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path):
    with pytest.raises(DataError, match=r"data\.csv:3: not UTF-8"):
        _open(tmp_path, "query,positive\na,b\nü,c\n".encode("latin-1"))


def test_cells_may_be_longer_than_csvs_own_limit(tmp_path):
    long = "x" * 300_000
    opened = _open(tmp_path, f"query,positive\n{long},b\n")
    assert opened[0]["query"] == long


def test_rows_travel_to_another_process(tmp_path):
    opened = pickle.loads(pickle.dumps(_open(tmp_path, "query,positive\na,b\n")))
    assert _all(opened) == [{"query": "a", "positive": "b"}]
