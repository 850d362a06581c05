"""The embeddings of a teacher that a row brings: one vector for its query and one for each of its documents."""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from vembed.data.fields.cells import Cell, describe_cell, is_absent, parsed_json
from vembed.errors import DataError
from vembed.types import RowEmbeddings

_NUMBERS = (int, float, Decimal, np.integer, np.floating)
_MAX_DEPTH = 3  # one deeper than a list of embeddings is, to be refused for its shape
_WANTED = "should be a list of numbers, or a list of such lists of one length"
_NOT_FINITE = "holds NaN or infinite numbers"
_KIND_NAMES = {bool: "truth values", np.bool_: "truth values", str: "texts", np.str_: "texts", type(None): "nulls"}


def read_embeddings(cells: Mapping[str, Cell], counts: Mapping[str, int], where: Mapping[str, str]) -> RowEmbeddings:
    """The embeddings in the cells, by field in the order query, positives, negatives.

    counts: how many each field has; one may stand alone, without a list around it. where: what messages call a field.
    Raises DataError for what is missing, no finite numbers, of another number than it should be, or of several widths.
    """
    parts = [_read_vectors(cells.get(field), count, where[field]) for field, count in counts.items() if count]
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise DataError(f"{next(iter(where.values()))}: the row's embeddings are of several widths: {sorted(widths)}")
    vectors = np.concatenate(parts)
    return RowEmbeddings(vectors[0], vectors[1:])


def _read_vectors(cell: Cell, count: int, where: str) -> NDArray[np.float32]:
    """Float32 [count, dim]."""
    if is_absent(cell):
        raise DataError(f"{where}: is missing; teacher_embeddings: true goes by an embedding of everything in a row")
    numbers = parsed_json(cell, where, "a list of numbers") if isinstance(cell, str) else cell
    table = _numbers(numbers, where)
    table = table[None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[1] == 0:
        shape = " x ".join(map(str, table.shape))
        raise DataError(f"{where}: an embedding is a list of numbers, and several are a list of those, not {shape}")
    if len(table) != count:
        raise DataError(f"{where}: has {len(table)} embeddings for {count} items; give one each")
    if not np.isfinite(table).all():
        raise DataError(f"{where}: {_NOT_FINITE}")
    return table


def _numbers(cell: Cell, where: str) -> NDArray[np.float32]:
    if not isinstance(cell, list | tuple | np.ndarray):
        raise DataError(f"{where}: should be a list of numbers, but is {describe_cell(cell)}")
    wrong = [kind for kind in _kinds(cell, _MAX_DEPTH) if kind is bool or not issubclass(kind, _NUMBERS)]
    if wrong:
        raise DataError(f"{where}: {_WANTED}, without {_KIND_NAMES.get(wrong[0], wrong[0].__name__)} in it")
    try:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused as that
            return np.array([list(row) if isinstance(row, np.ndarray) else row for row in cell], np.float32)
    except OverflowError:
        raise DataError(f"{where}: {_NOT_FINITE}") from None
    except (TypeError, ValueError):
        raise DataError(f"{where}: {_WANTED}") from None


def _kinds(cell: Cell, depth: int) -> set[type]:
    """The types of what the lists hold, for numpy makes numbers of texts, truth values and nulls too."""
    if isinstance(cell, np.ndarray) and cell.dtype != np.object_:
        return {cell.dtype.type}
    kinds = set(map(type, cell))
    lists = kinds & {list, tuple, np.ndarray}
    inner = [_kinds(part, depth - 1) for part in cell if depth and isinstance(part, tuple(lists))] if lists else []
    return (kinds - lists).union(*inner)


def stack_embeddings(
    rows: Sequence[RowEmbeddings], columns: Sequence[Sequence[int]], origins: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Float32 [queries, dim] and [documents, dim] of a batch. columns: of each row's documents, in their order.

    A document of several rows has the embedding of the first. Raises DataError when rows differ in width.
    """
    widths = [row.query.shape[0] for row in rows]
    for width, origin in zip(widths, origins, strict=True):
        if width != widths[0]:
            raise DataError(f"{origin}: its embeddings have {width} numbers, those of {origins[0]} {widths[0]}")
    documents = np.zeros((1 + max(column for row in columns for column in row), widths[0]), np.float32)
    for column, vector in reversed(list(_columns_and_vectors(rows, columns))):
        documents[column] = vector
    return np.stack([row.query for row in rows]), documents


def _columns_and_vectors(
    rows: Sequence[RowEmbeddings], columns: Sequence[Sequence[int]]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for row, own in zip(rows, columns, strict=True):
        yield from zip(own, row.documents, strict=True)
