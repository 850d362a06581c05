"""CSV and TSV: cells stay what is written, rows may span lines, and a file whose quotes do not match is refused."""

import csv
import pickle
import re
import time

import pytest

from tests.pictures import write_csv
from vembed.data.loading import load_data
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
def test_quotes_that_do_not_match_are_refused_with_the_line_and_a_way_out(tmp_path, text, line):
    with pytest.raises(DataError, match=rf"data\.csv:{line}: broken CSV: .*quoting: none"):
        _open(tmp_path, text)


def _queries(tmp_path, text, delimiter="\t", quoting=None):
    path = tmp_path / "data.tsv"
    path.write_bytes(text.encode())
    rows = open_csv(str(path), delimiter, quoting)
    return [rows[index]["query"] for index in range(len(rows))]


def _plain(rows, delimiter="\t"):
    return "".join(delimiter.join(cells) + "\n" for cells in [("query", "positive", "note"), *rows])


# Leading quotes, inches, a cell in quotes within a text, quotes at both ends of a row, and a lone quote.
_PLAIN = ['"new screen', "screen", '27"', '"Best" shoe', 'a "b" c', '"', 'screen of 27"', "end"]


@pytest.mark.parametrize("quoting", [None, "none"])
def test_in_tsv_quotes_that_do_not_match_are_text_and_no_row_is_taken_in(tmp_path, quoting):
    rows = [(query, f"d{number}", 'x"' if number % 3 else "x") for number, query in enumerate(_PLAIN * 5)]
    assert _queries(tmp_path, _plain(rows), quoting=quoting) == [query for query, _, _ in rows]


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("last", [0, 1, 2])
@pytest.mark.parametrize("between", [0, 1, 3, 40])
def test_wherever_a_quote_opens_and_ends_every_row_is_read_and_it_is_told(tmp_path, caplog, first, last, between):
    rows = [[f"q{number}", f"d{number}", f"n{number}"] for number in range(50)]
    rows[3][first] = '"new'
    rows[4 + between][last] += '"'
    assert _queries(tmp_path, _plain(rows)) == [row[0] for row in rows]
    assert re.search(rf"data\.tsv:5: a cell begins with a quote.*in line {6 + between}; .*quoting: none", caplog.text)


def test_a_bad_row_among_those_that_a_quote_would_take_in_hides_nothing(tmp_path):
    rows = [[f"q{number}", f"d{number}", f"n{number}"] for number in range(20)]
    rows[3][0], rows[9][1], rows[6] = '"new', 'd"', ["short"]
    opened = _open(tmp_path, _plain(rows), "\t")
    assert len(opened) == 20
    with pytest.raises(DataError, match=r"data\.csv:8: the row has 1 cells, the header has 3"):
        opened[6]
    assert opened[5]["query"] == "q5"


def test_a_quote_that_takes_in_the_delimiter_of_its_own_row_is_text(tmp_path):
    assert _queries(tmp_path, 'query\tpositive\n"new\tof 27"\n"a\tb"\tc\n') == ['"new', "a\tb"]


def test_what_a_spreadsheet_writes_as_tsv_is_read_as_it_was(tmp_path, caplog):
    cells = [
        'say "hi"',
        "two\nlines",
        "tab\there",
        '27"',
        '"quoted"',
        "\"first\nlast\" 'x'",
        'a\n"b"\tc\nd',
        "",
        "plain",
        "a\r\nb",
    ]
    rows = [{"query": one, "positive": other, "note": one + other} for one in cells for other in cells if one or other]
    path = tmp_path / "data.tsv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["query", "positive", "note"], dialect="excel-tab")
        writer.writeheader()
        writer.writerows(rows)
    assert _all(open_csv(str(path), "\t")) == rows
    assert not caplog.text


def test_the_entry_says_what_quotes_are_and_ends_the_doubt(tmp_path, caplog):
    text = 'query\tpositive\n"a\tb\nc"\td\n'
    assert _queries(tmp_path, text, quoting="standard") == ["a\tb\nc"]
    assert _queries(tmp_path, text, quoting="none") == ['"a', 'c"']
    assert not caplog.text
    assert _queries(tmp_path, 'query,positive\n"Best" shoe,b\n', ",", "none") == ['"Best" shoe']


def test_in_csv_a_quoted_cell_that_takes_in_rows_is_told(tmp_path, caplog):
    text = 'query,positive\n"screen,d0\nscreen,d1\nscreen 27",d2\n'
    assert _queries(tmp_path, text, ",") == ["screen,d0\nscreen,d1\nscreen 27"]
    assert re.search(r"data\.tsv:2: a cell begins .*in line 4; it is read as one cell.*quoting: none", caplog.text)
    caplog.clear()
    assert _queries(tmp_path, 'query,positive\n"Once, there was\na cell\n\nof lines, all in all",d\n', ",") == [
        "Once, there was\na cell\n\nof lines, all in all"
    ]
    assert not caplog.text


def test_many_open_quotes_cost_one_look_each(tmp_path):
    rows = [(f'"q{number}', "d", "n") for number in range(20_000)]
    started = time.monotonic()
    assert len(_queries(tmp_path, _plain(rows))) == 20_000
    assert time.monotonic() - started < 10  # seconds; each looking to the end would take minutes


def test_quoting_is_refused_where_there_is_none(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"query": "a"}\n')
    with pytest.raises(DataError, match=r"data\.jsonl: quoting is for CSV and TSV files"):
        load_data(str(tmp_path / "data.jsonl"), quoting="none")


def test_names_of_columns_that_occur_twice_are_told(tmp_path, caplog):
    _open(tmp_path, "query,positive,query,,\na,b,c,,\n")
    assert "data.csv: several columns are called 'query'; the first of them is read" in caplog.text


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_carriage_return_inside_a_row_drops_nothing(tmp_path, delimiter):
    text = f"query{delimiter}positive\nx{delimiter}y\na{delimiter}b\rc{delimiter}d\n"
    if delimiter == ",":
        with pytest.raises(DataError, match=r"data\.csv:3: broken CSV: a carriage return stands inside a cell"):
            _open(tmp_path, text)
    else:
        opened = _open(tmp_path, text, delimiter)
        with pytest.raises(DataError, match=r"data\.csv:3: the row has 3 cells, the header has 2"):
            opened[1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("query,positive\na,b\n".encode("utf-16"), "the file is UTF-16, not text in UTF-8"),
        ("query,positive\na,b\n".encode("utf-16-be"), "full of zero bytes, as UTF-16"),
        (b"query,positive\ra,b\r", "lines end with carriage returns alone, as on old Macs"),
        (b"PK\x03\x04rest", "a zip archive"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_a_line_that_names_it(tmp_path, data, words):
    with pytest.raises(DataError, match=rf"data\.csv: .*{words}"):
        _open(tmp_path, data)


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
