"""CSV and TSV files. Every cell stays the text it is ("007", "NA"); a quoted cell may span lines.

The file is parsed once when it is opened, to find its rows; only their places are kept.

What a quote means is the trouble of these formats. In a .csv file a cell that begins with a quote ends with one, and
may hold commas and lines. In a .tsv file it does so where a spreadsheet wrote the file; most other programs write text
as it is, and a quote means nothing (27"). So in a .tsv file a cell is quoted if its quotes match, else its quotes are
text; and a quote that is open at the end of its row takes in no rows below. In a .csv file it does, as the format wants
it, and that is told. `quoting: standard` or `none` in the data's entry says what is so.
"""

import csv
import logging
import mmap
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vembed.data.readers.csv_cells import broken, long_cells, matching_cells, plain_cells, standard_cells
from vembed.data.readers.source_file import SourceFile
from vembed.data.readers.text_rows import Row, Spans, TextRows, line_ends, refuse_old_line_ends, text_start
from vembed.errors import DataError

Quoting = Literal["standard", "matching", "none"]

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_READERS = {"standard": standard_cells, "matching": matching_cells, "none": plain_cells}
_DOUBTS = {
    "matching": "the lines are read as rows of their own and the quotes as text (in the data_path entry of the file,"
    " quoting: none says that this is right, and quoting: standard that it is one cell over all of them)",
    "standard": "it is read as one cell over all of them, though they look like rows (in the data_path entry of the"
    " file, quoting: standard says that this is right, and quoting: none that quotes are plain text)",
}
_log = logging.getLogger(__name__)


def open_csv(path: str, delimiter: str, quoting: Literal["standard", "none"] | None = None) -> TextRows:
    """The rows below the header line. quoting: None goes by the format.

    Raises DataError when there are none, or quotes do not match.
    """
    source = SourceFile(path)
    line_ends(source.map, path)
    refuse_old_line_ends(source.map, path)
    rule: Quoting = quoting or ("matching" if delimiter == "\t" else "standard")
    _refuse_other_delimiter(source.map, delimiter, rule, path)
    finder = _RowFinder(source.map, path, delimiter, rule, tells=quoting is None)
    row_spans = finder.spans()
    header = _header(finder, next(row_spans, None), path)
    finder.num_cells = len(header)
    starts, ends, numbers = array("q"), array("q"), array("q")
    for start, end, line in row_spans:
        starts.append(start)
        ends.append(end)
        numbers.append(line)
    if not starts:
        raise DataError(f"{path}: the file has a header but no rows")
    finder.tell()
    places = [np.frombuffer(values, np.int64) for values in (starts, ends, numbers)]
    spans = Spans(places[0], places[1], places[2])
    return TextRows(source, spans, CsvRowParser(header, delimiter, rule), columns=header, lists_in_text=True)


@dataclass(frozen=True)
class CsvRowParser:
    """Turns a row's text into {column: cell}. Of columns with the same name the first counts."""

    header: tuple[str, ...]
    delimiter: str
    quoting: Quoting

    def __call__(self, text: str, origin: str) -> Row:
        cells = _READERS[self.quoting](text, self.delimiter, len(self.header), origin)
        if len(cells) != len(self.header):
            raise DataError(f"{origin}: the row has {len(cells)} cells, the header has {len(self.header)}")
        row: dict[str, str] = {}
        for name, cell in zip(self.header, cells, strict=True):
            row.setdefault(name, cell)
        return row


class _QuoteRunsOn(Exception):
    """A quote is known to run on to a line that ends it for no good."""


class _RowFinder:
    """Finds where rows start and end. `num_cells`: of a row, once the header is known.

    A quote that is still open at the end of its line opens the lines below, down to one that closes it; from a line
    between, an open quote runs on to that same one. So what became of it is looked up but once (`_settled`).
    """

    def __init__(self, mapped: mmap.mmap, path: str, delimiter: str, quoting: Quoting, *, tells: bool) -> None:
        self.num_cells = 0
        self._mapped, self._path, self._delimiter, self._quoting = mapped, path, delimiter, quoting
        self._tells = tells
        self._end, self._line = text_start(mapped), 0  # byte after the last line that was given out, and its number
        self._row_line = 1
        self._settled = 0
        self._doubtful: list[tuple[int, int]] = []

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """(first byte, byte after the last, line) of every row that is not blank, the header first."""
        self._go_to(self._end, 0)
        find = self._lines_with_text if self._quoting == "none" else self._quoted_rows
        with long_cells():
            yield from find()

    def cells(self, span: tuple[int, int, int]) -> tuple[str, ...]:
        """The cells of a row."""
        text, where = self._mapped[span[0] : span[1]].decode(), f"{self._path}:{span[2]}"
        return tuple(_READERS[self._quoting](text, self._delimiter, self.num_cells, where))

    def tell(self) -> None:
        """Say once where a quoted cell takes in, or would take in, what looks like rows of their own."""
        if not self._doubtful or not self._tells:
            return
        first, last = self._doubtful[0]
        others = f" (and {len(self._doubtful) - 1} more such places)" if len(self._doubtful) > 1 else ""
        found = f"a cell begins with a quote, and the next quote that ends a cell is in line {last}{others}"
        _log.warning("%s:%d: %s; %s", self._path, first, found, _DOUBTS[self._quoting])

    def _lines_with_text(self) -> Iterator[tuple[int, int, int]]:
        start = self._end
        for line in self._lines():
            if line.strip("\r\n"):
                yield start, self._end, self._line
            start = self._end

    def _quoted_rows(self) -> Iterator[tuple[int, int, int]]:
        while (start := self._end) < len(self._mapped):
            self._row_line = self._line + 1
            try:
                for cells in csv.reader(self._lines(), delimiter=self._delimiter, strict=True):
                    if self._line > self._row_line and self._is_text(start):
                        raise _QuoteRunsOn
                    if cells:
                        yield start, self._end, self._row_line
                    start, self._row_line = self._end, self._line + 1
            except (csv.Error, _QuoteRunsOn) as error:
                if self._quoting == "standard":
                    raise broken(f"{self._path}:{self._row_line}", error) from error
                self._settled = max(self._settled, self._line)
                self._go_to(start, self._row_line - 1)
                self._mapped.readline()
                self._end, self._line = self._mapped.tell(), self._row_line
                yield start, self._end, self._row_line

    def _is_text(self, start: int) -> bool:
        """True if the quote that opens several lines is text: its row ends in its line. Notes what is in doubt.

        In doubt is a cell whose first and last line, and most between, look like rows, and that has no doubled quote.
        """
        data, sign = self._mapped[start : self._end].removesuffix(b"\n"), self._delimiter.encode()
        needed = self.num_cells - 1
        if not needed or data.count(sign, 0, data.find(b"\n")) < needed or data.count(sign, data.rfind(b"\n")) < needed:
            return False
        if b'""' in data:
            return False
        whole = [self._looks_whole(line) for line in data.decode().split("\n")]
        if not (whole[0] and whole[-1]) or 2 * sum(whole) < len(whole) + 2:
            return False
        self._doubtful.append((self._row_line, self._line))
        return self._quoting == "matching"

    def _looks_whole(self, line: str) -> bool:
        return len(matching_cells(line, self._delimiter, self.num_cells, "")) == self.num_cells

    def _go_to(self, end: int, line: int) -> None:
        self._mapped.seek(end)
        self._end, self._line = end, line

    def _lines(self) -> Iterator[str]:
        for line in iter(self._mapped.readline, b""):
            if self._line < self._settled and self._line >= self._row_line:
                raise _QuoteRunsOn
            self._end += len(line)
            self._line += 1
            yield line.decode()


def _refuse_other_delimiter(mapped: mmap.mmap, delimiter: str, quoting: Quoting, path: str) -> None:
    """Raise DataError when the header has one column as the file's ending reads it, and several in another way."""
    mapped.seek(text_start(mapped))
    text = next((line.decode() for line in iter(mapped.readline, b"") if line.strip()), "\n")
    counts = {sign: _num_cells(text, sign, quoting) for sign in _DELIMITERS}
    best = max(counts, key=lambda sign: counts[sign])
    if counts[delimiter] > 1 or counts[best] < 2:
        return
    raise DataError(
        f"{path}: the header {text.strip()[:60]!r} has {_DELIMITERS[best]} between its columns; a .csv file has commas"
        " there and a .tsv file has tabs: save it as one of these"
    )


def _num_cells(text: str, delimiter: str, quoting: Quoting) -> int:
    """Number of a line's cells with this delimiter, 0 if its quotes do not match that way."""
    try:
        return len(_READERS[quoting](text, delimiter, 0, ""))
    except DataError:
        return 0


def _header(finder: _RowFinder, span: tuple[int, int, int] | None, path: str) -> tuple[str, ...]:
    if span is None:
        raise DataError(
            f"{path}: the file holds blank lines only; the first line names the columns, each other is a row"
        )
    header = tuple(name.strip() for name in finder.cells(span))
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    if twice:
        _log.warning(
            "%s: several columns are called %s; the first of them is read", path, " and ".join(map(repr, twice))
        )
    return header
