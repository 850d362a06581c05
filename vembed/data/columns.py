"""Which columns of the data hold which field of a row, and what is said of columns that no field reads."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from vembed.data.fields.columns import FIELDS, LIST_FIELDS, Columns
from vembed.data.loading import Rows, has_column
from vembed.data.records import RowReader
from vembed.errors import DataError
from vembed.registry import nearest_names
from vembed.utils.untrusted import printable

_log = logging.getLogger(__name__)
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<sign>[ _-]?)(?P<number>\d+)", re.DOTALL)
_SHOWN, _SHOWN_LENGTH = 20, 60
_SIDES = (("query", "query_image", 0), ("positive", "positive_image", 2), ("negatives", "negative_images", 2))
_EMBEDDINGS = ("query_embedding", "positive_embeddings", "negative_embeddings")


def with_numbered_negatives(columns: Columns, rows: Rows) -> Columns:
    """The mapping, and in it negative_1, negative_2 and so on as the negatives where there is no other column of them.

    So sentence-transformers writes several negatives of a row.
    """
    others = ("negatives", "negative", "negative_images")
    if any(name in columns for name in others) or any(has_column(rows, name) for name in others):
        return columns
    numbered = _numbered_columns(rows, "negative")
    return {**columns, "negatives": numbered} if numbered else columns


def check_columns(rows: Rows, reader: RowReader, path: str) -> None:
    """Refuse data without a column that is mapped to or required; tell which ones are not read.

    Raises DataError. Columns that look like what a field reads, or like a misspelt field, are told as a warning.
    """
    for field_name in reader.columns:
        for column in reader.columns_of(field_name):
            if not has_column(rows, column):
                raise DataError(_no_column(rows, field_name, column, path))
    for side in ("query", "positive"):
        columns = (*reader.columns_of(side), *reader.columns_of(f"{side}_image"))
        if not any(has_column(rows, column) for column in columns):
            raise DataError(_no_column(rows, side, columns[0], path))
    unread = _unread_fields(rows, reader)
    read = [name for name in FIELDS if name not in unread]
    used = {column for name in read for column in reader.columns_of(name)}
    used |= set() if "group" in reader.columns else {"class"}
    told = _tell_other_kind(rows, reader, unread, used, path)
    unused = _unread(rows, used)
    own = {column for name in FIELDS for column in reader.columns_of(name)}
    told |= _tell_neighbours(rows, reader, read, [name for name in unused if name not in own], path)
    _tell_misspelt(rows, reader, [name for name in unused if name not in told | own], path)
    if {"group", "class"} <= used and has_column(rows, "group") and has_column(rows, "class"):
        unused.append("class (in rows that have a group)")
    _tell_unread(unused, path)


def tell_unread_columns(rows: Rows, read: Collection[str], path: str) -> None:
    """Tell of a table that is read by fixed names which columns are not; those named nearly so in a warning."""
    unused = _unread(rows, read)
    for name in read:
        others = [column for column in unused if _stem(column) == _stem(name)]
        if not others and not has_column(rows, name):
            others = [column for column in unused if nearest_names(_stem(column), [name])]
        if others:
            _log.warning(
                "%s: %s %s not read; what should be is in a column called %s",
                path, _listed(others), _are(others), name,
            )  # fmt: skip
    _tell_unread(unused, path)


def _unread(rows: Rows, read: Collection[str]) -> list[str]:
    return [name for name in map(str, rows.columns) if name not in read]


def _tell_unread(columns: Sequence[str], path: str) -> None:
    if columns:
        _log.info("%s: columns that are not read: %s", path, _listed(columns))


def _unread_fields(rows: Rows, reader: RowReader) -> dict[str, str]:
    """The fields that the mode or the needs of the run do not read, and why, where that is worth a warning."""
    unread = {} if reader.needs.embeddings else dict.fromkeys(_EMBEDDINGS, "")
    for text, image, place in _SIDES:
        kind = reader.mode[place]
        if kind == "t":
            unread[image] = f"retrieval_mode {reader.mode} takes a text as {text}, and no image"
        elif kind == "i" and any(has_column(rows, column) for column in reader.columns_of(image)):
            columns = ", ".join(reader.columns_of(image))
            unread[text] = f"retrieval_mode {reader.mode} takes an image as {text}, and {columns} where a row has it"
    return unread


def _tell_other_kind(
    rows: Rows, reader: RowReader, unread: Mapping[str, str], used: Collection[str], path: str
) -> set[str]:
    """Warn of columns of our fields that hold texts where images are read, or images where texts are. The columns."""
    told: set[str] = set()
    for field_name, why in unread.items():
        columns = [name for name in reader.columns_of(field_name) if name not in used and has_column(rows, name)]
        if columns and why:
            told.update(columns)
            _log.warning("%s: %s", path, printable(f"{', '.join(columns)} {_are(columns)} not read: {why}"))
    return told


def _numbered_columns(rows: Rows, stem: str) -> tuple[str, ...]:
    """The columns of this name and a number, by number; also those that only rows far down the file have."""
    found = {name: parts for name in map(str, rows.columns) if (parts := _NUMBERED.fullmatch(name))}
    numbers = [(int(parts["number"]), name) for name, parts in found.items() if parts["stem"] == stem]
    sign = next((parts["sign"] for parts in found.values() if parts["stem"] == stem), "_")
    following = max((number for number, _ in numbers), default=0) + 1
    while has_column(rows, name := f"{stem}{sign}{following}"):
        numbers.append((following, name))
        following += 1
    return tuple(name for _, name in sorted(numbers))


def _tell_neighbours(
    rows: Rows, reader: RowReader, fields: Sequence[str], unused: Sequence[str], path: str
) -> set[str]:
    """Warn of columns named like one that is read: negative_2 beside negative_1. The columns."""
    told: set[str] = set()
    for field_name in fields:
        read = [column for column in reader.columns_of(field_name) if has_column(rows, column)]
        stems = {_stem(column) for column in read}
        beside = [column for column in unused if _stem(column) in stems and column not in told]
        if beside:
            told.update(beside)
            _log.warning("%s: %s", path, printable(_beside_text(field_name, read, beside)))
    return told


def _beside_text(field_name: str, read: Sequence[str], beside: Sequence[str]) -> str:
    found = f"{field_name} reads {', '.join(read)}, and {', '.join(beside)} beside it {_are(beside)} not read;"
    if field_name in LIST_FIELDS:
        return f"{found} column_mapping: {{{field_name}: [{', '.join((*read, *beside))}]}} reads all of them"
    return f"{found} a row has one, and column_mapping: {{{field_name}: {beside[0]}}} reads that one instead"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name[:_SHOWN_LENGTH]) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _stem(column: str) -> str:
    """The name without its number and plural: alike for negative_1, negative2 and negatives."""
    numbered = _NUMBERED.fullmatch(column)
    return (numbered["stem"] if numbered else column).removesuffix("s").lower()


def _tell_misspelt(rows: Rows, reader: RowReader, columns: Iterable[str], path: str) -> None:
    """Warn of columns that look like fields that no column holds."""
    for column in columns:
        near = [
            name
            for name in nearest_names(column, FIELDS)
            if not any(has_column(rows, one) for one in reader.columns_of(name))
        ]
        if near:
            _log.warning(
                "%s: column %r is not used; if it holds %s, say column_mapping: {%s: %s}",
                path, column, near[0], near[0], printable(column),
            )  # fmt: skip


def _no_column(rows: Rows, field_name: str, column: str, path: str) -> str:
    near = nearest_names(column, map(str, rows.columns))
    hint = f"; did you mean {near[0]!r}?" if near else "."
    found = _listed(list(map(str, rows.columns)))
    return printable(
        f"{path}: {field_name}: there is no column {column!r}{hint} The data has: {found}"
        f" (column_mapping: {{{field_name}: NAME}} tells which column it is)"
    )
