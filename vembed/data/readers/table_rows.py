"""Rows of an Arrow table: where it comes from is the business of `parquet_rows` and `datasets_rows`.

A cell is decoded when it is asked for: what is not read costs nothing, and cannot be broken. Image cells stay encoded
({"bytes", "path"}): decoding is the loader's business.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from vembed.errors import DataError
from vembed.utils.untrusted import library_errors

Cell = Any  # Any: whatever the table holds


class Cells(Protocol):
    """Some rows of all columns: an Arrow table or record batch."""

    def column(self, number: int, /) -> Any: ...  # Any: pyarrow's arrays have no types of their own


class Table(Protocol):
    """Columns, and where in them a row lies."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def locate(self, index: int) -> tuple[Cells, int]:
        """Cells that hold the row, and the row's number in them."""
        ...


class TableRows:
    """`len`, `[i] -> row`, `origin(i) -> "train.parquet:17"` (the row number from 1). Of equal column names the first
    counts. labels: column -> the names of its classes, which stand in place of their numbers.
    """

    lists_in_text = False

    def __init__(self, table: Table, path: str, labels: Mapping[str, Sequence[str]]) -> None:
        self.columns = tuple(dict.fromkeys(table.columns))
        self._path = path
        self._table = table
        self._labels = labels
        self._numbers = {name: table.columns.index(name) for name in self.columns}

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> "TableRow":
        origin = self.origin(index)
        with library_errors(DataError, f"{origin}: the row cannot be read", or_too_large=True):
            cells, number = self._table.locate(index)
        return TableRow(cells, number, self._numbers, self._labels, origin)

    def origin(self, index: int) -> str:
        """Source and row number from 1, as in "train.parquet:17"."""
        return f"{self._path}:{index + 1}"

    def number(self, index: int) -> int:
        """The row's number from 1."""
        return index + 1


class TableRow(Mapping[str, Cell]):
    """A row by column name. Raises DataError, with the row and the column, for a cell that cannot be decoded."""

    def __init__(
        self,
        cells: Cells,
        number: int,
        column_numbers: Mapping[str, int],
        labels: Mapping[str, Sequence[str]],
        origin: str,
    ) -> None:
        self._cells = cells
        self._number = number
        self._column_numbers = column_numbers
        self._labels = labels
        self._origin = origin

    def __getitem__(self, name: str) -> Cell:
        column = self._column_numbers[name]
        with library_errors(DataError, f"{self._origin}: column {name!r} cannot be decoded", or_too_large=True):
            cell = self._cells.column(column)[self._number].as_py()
        return _class_name(cell, self._labels[name], f"{self._origin}: {name}") if name in self._labels else cell

    def get(self, name: str, default: Cell = None) -> Cell:
        """The cell, or `default` where there is no such column, as for most fields: no exception is raised for it."""
        return self[name] if name in self._column_numbers else default

    def __contains__(self, name: object) -> bool:
        return name in self._column_numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._column_numbers)

    def __len__(self) -> int:
        return len(self._column_numbers)

    def __repr__(self) -> str:
        return repr(dict(self))


def _class_name(cell: Cell, names: Sequence[str], where: str) -> Cell:
    """The name of a class's number; a number below 0 means none, and what is no number is a name already."""
    if not isinstance(cell, int):
        return cell
    if cell >= len(names):
        raise DataError(f"{where}: there is no class {cell}; the data names {len(names)} classes, from 0")
    return names[cell] if cell >= 0 else None
