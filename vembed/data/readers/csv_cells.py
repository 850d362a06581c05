"""The cells of a row of CSV or TSV, by what a quote means in the file."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager

from vembed.errors import DataError

_CELL_LIMIT = (1 << 31) - 1  # an image as base64 is longer than the csv module's limit of 128 KiB
_HINT = (
    "a cell that begins with a quote ends with one, and a quote inside it is doubled; if quotes are plain text in this"
    " file, say quoting: none in its data_path entry"
)


def standard_cells(text: str, delimiter: str, _num_cells: int, where: str) -> list[str]:
    """The cells where a quote at the start of one opens it. Raises DataError when the quotes do not match.

    >>> standard_cells('"a, b",27"', ",", 2, "")
    ['a, b', '27"']
    """
    cells = _strict_cells(text, delimiter)
    if isinstance(cells, csv.Error):
        raise broken(where, cells)
    return cells


def plain_cells(text: str, delimiter: str, _num_cells: int, _where: str) -> list[str]:
    """The cells where a quote is a sign like any other.

    >>> plain_cells('"a, b",27"', ",", 2, "")
    ['"a', ' b"', '27"']
    """
    return text.removesuffix("\n").removesuffix("\r").split(delimiter)


def matching_cells(text: str, delimiter: str, num_cells: int, _where: str) -> list[str]:
    """The cells where one is quoted if its quotes match, and where all quotes are text if only so `num_cells` come out.

    >>> matching_cells('"Best" shoe|"a ""b"" c"', "|", 2, ""), matching_cells('"new|27"', "|", 2, "")
    (['"Best" shoe', 'a "b" c'], ['"new', '27"'])
    """
    strict = _strict_cells(text, delimiter)
    line = text.removesuffix("\n").removesuffix("\r")
    loose = list(_loose_cells(line, delimiter)) if isinstance(strict, csv.Error) else strict
    if len(loose) == num_cells or line.count(delimiter) + 1 != num_cells:
        return loose
    return line.split(delimiter)


def broken(where: str, error: Exception) -> DataError:
    """The error for a row whose quotes do not match, or that has a line end where none can be."""
    if "new-line" in str(error):
        return DataError(f"{where}: broken CSV: a carriage return stands inside a cell that is not quoted")
    return DataError(f"{where}: broken CSV: {error}; {_HINT}")


@contextmanager
def long_cells() -> Iterator[None]:
    """Lift the csv module's process-wide limit on a cell's length for a while."""
    limit = csv.field_size_limit(_CELL_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _strict_cells(text: str, delimiter: str) -> "list[str] | csv.Error":
    with long_cells():
        try:
            return next(csv.reader([text], delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            return error


def _loose_cells(line: str, delimiter: str) -> Iterator[str]:
    """Cell by cell: quoted where its quotes match, and up to the next delimiter where not."""
    place = 0
    while place <= len(line):
        quoted = _quoted_cell(line, place, delimiter)
        if quoted is None:
            end = line.find(delimiter, place)
            end = len(line) if end < 0 else end
            quoted = line[place:end], end
        yield quoted[0]
        place = quoted[1] + len(delimiter)


def _quoted_cell(line: str, start: int, delimiter: str) -> tuple[str, int] | None:
    """The quoted cell that begins at `start`, without its quotes, and where it ends; None if there is none."""
    if not line.startswith('"', start):
        return None
    place = start + 1
    while (place := line.find('"', place)) >= 0:
        if line.startswith('""', place):
            place += 2
        elif place + 1 == len(line) or line.startswith(delimiter, place + 1):
            return line[start + 1 : place].replace('""', '"'), place + 1
        else:
            return None
    return None
