"""CSV and TSV files. Every cell stays the text it is ("007", "NA"); a quoted cell may span lines.

The file is parsed once when it is opened, to find its rows; only their places are kept.
"""

import csv
import io
import mmap
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vembed.data.readers.text_rows import Row, Spans, TextRows, line_ends, map_file, text_start
from vembed.errors import DataError

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_CELL_LIMIT = (1 << 31) - 1  # an image as base64 is longer than the csv module's limit of 128 KiB


def open_csv(path: str, delimiter: str) -> TextRows:
    """The rows below the header line. Raises DataError when there are none, or quotes do not match."""
    mapped = map_file(path)
    line_ends(mapped, path)
    _refuse_other_delimiter(mapped, delimiter, path)
    lines = _Lines(mapped, text_start(mapped))
    row_spans = _row_spans(lines, delimiter, path)
    header = _header(lines, next(row_spans, None), path, delimiter)
    starts, ends, numbers = array("q"), array("q"), array("q")
    for start, end, line in row_spans:
        starts.append(start)
        ends.append(end)
        numbers.append(line)
    if not starts:
        raise DataError(f"{path}: the file has a header but no rows")
    spans = Spans(*(np.frombuffer(values, np.int64) for values in (starts, ends, numbers)))
    return TextRows(path, spans, CsvRowParser(header, delimiter), columns=header, lists_in_text=True)


@dataclass(frozen=True)
class CsvRowParser:
    """Turns a row's text into {column: cell}. Of columns with the same name the first counts."""

    header: tuple[str, ...]
    delimiter: str

    def __call__(self, text: str, origin: str) -> Row:
        cells = _parse_line(text, self.delimiter, origin)
        if len(cells) != len(self.header):
            raise DataError(f"{origin}: the row has {len(cells)} cells, the header has {len(self.header)}")
        row: dict[str, str] = {}
        for name, cell in zip(self.header, cells, strict=True):
            row.setdefault(name, cell)
        return row


class _Lines:
    """The file's lines one after another as text; `end` and `count` tell what was given out."""

    def __init__(self, mapped: mmap.mmap, start: int) -> None:
        self.mapped = mapped
        self.end = start
        self.count = 0
        mapped.seek(start)

    def __iter__(self) -> Iterator[str]:
        while line := self.mapped.readline():
            self.end += len(line)
            self.count += 1
            yield line.decode()


def _row_spans(lines: _Lines, delimiter: str, path: str) -> Iterator[tuple[int, int, int]]:
    """(first byte, byte after the last, line) of every row that is not blank, the header first."""
    with _long_cells():
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        start, line = lines.end, 1
        try:
            for cells in reader:
                if cells:
                    yield start, lines.end, line
                start, line = lines.end, lines.count + 1
        except csv.Error as error:
            raise DataError(f"{path}:{line}: broken CSV: {error}; a quote inside a quoted cell is doubled") from error


def _refuse_other_delimiter(mapped: mmap.mmap, delimiter: str, path: str) -> None:
    """Raise DataError when the header has one column as the file's ending reads it, and several in another way."""
    mapped.seek(text_start(mapped))
    text = next((line.decode() for line in iter(mapped.readline, b"") if line.strip()), "\n")
    counts = {sign: _num_cells(text, sign) for sign in _DELIMITERS}
    best = max(counts, key=lambda sign: counts[sign])
    if counts[delimiter] > 1 or counts[best] < 2:
        return
    raise DataError(
        f"{path}: the header {text.strip()[:60]!r} has {_DELIMITERS[best]} between its columns; a .csv file has commas"
        " there and a .tsv file has tabs: save it as one of these"
    )


def _num_cells(text: str, delimiter: str) -> int:
    """Number of a line's cells with this delimiter, 0 if its quotes do not match that way."""
    try:
        return len(_parse_line(text, delimiter, ""))
    except DataError:
        return 0


def _header(lines: _Lines, row_span: tuple[int, int, int] | None, path: str, delimiter: str) -> tuple[str, ...]:
    if row_span is None:
        raise DataError(
            f"{path}: the file holds blank lines only; the first line names the columns, each other is a row"
        )
    text = lines.mapped[row_span[0] : row_span[1]].decode()
    return tuple(name.strip() for name in _parse_line(text, delimiter, f"{path}:{row_span[2]}"))


def _parse_line(text: str, delimiter: str, origin: str) -> list[str]:
    with _long_cells():
        try:
            return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise DataError(f"{origin}: broken CSV: {error}") from error


@contextmanager
def _long_cells() -> Iterator[None]:
    """Lift the csv module's process-wide limit on a cell's length for a while."""
    limit = csv.field_size_limit(_CELL_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
