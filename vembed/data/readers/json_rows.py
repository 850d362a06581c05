"""JSON files: one object per line, or one list of objects.

Lines are only searched for their ends when the file is opened (about a second per GB), so a line that is no JSON is
found when it is read. A list has no line structure; it is parsed once, whole, to find its objects.
"""

import json
import mmap
import re
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vembed.data.readers.source_file import SourceFile
from vembed.data.readers.text_rows import Row, Spans, TextRows, line_ends, refuse_old_line_ends, row_place, text_start
from vembed.errors import DataError
from vembed.utils.untrusted import library_message

_BLANK = re.compile(r"[ \t\r\n]*")
_BLANK_BYTES = np.frombuffer(b" \t\r\n", np.uint8)


def open_json(path: str) -> TextRows:
    """The rows of a JSON file of either form. Raises DataError when it has none."""
    source = SourceFile(path)
    mapped = source.map
    ends = line_ends(mapped, path)
    start = text_start(mapped)
    first = _first_character(mapped, start)
    if first != "[":
        refuse_old_line_ends(mapped, path)
    spans = _list_spans(mapped, start, path) if first == "[" else _line_spans(mapped, start, ends)
    if len(spans.starts) == 0:
        found = "an empty list" if first == "[" else "blank lines only"
        raise DataError(f'{path}: the file holds {found}; a row is an object like {{"query": ...}}')
    return TextRows(source, spans, parse_object)


def has_key(rows: TextRows, name: str) -> bool:
    """True if any row can have the key, also a row far down the file."""
    if name in rows.columns:
        return True
    spellings = {json.dumps(name, ensure_ascii=ascii_only) for ascii_only in (True, False)}
    return any(rows.mentions(spelling.encode("utf-8", "surrogatepass")) for spelling in spellings)


def parse_object(text: str, origin: str) -> Row:
    """The row written as a JSON object. Raises DataError when it is none, or has a key twice."""
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{origin}: broken JSON: {error.msg} (at character {error.pos + 1} of the row); a line holds one object,"
            " or the file holds one list of objects"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{origin}: broken JSON: {_fault(error)}") from error
    if not isinstance(row, dict):
        raise DataError(f'{origin}: a row is an object like {{"query": ...}}, not {type(row).__name__} {text[:40]!r}')
    return row


def _fault(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else library_message(error)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: what JSON holds
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object; keep one")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _first_character(mapped: mmap.mmap, start: int) -> str:
    while start < len(mapped) and mapped[start : start + 1].isspace():
        start += 1
    return mapped[start : start + 1].decode("latin-1")


def _line_spans(mapped: mmap.mmap, start: int, newlines: NDArray[np.int64]) -> Spans:
    """One row per line that is not blank."""
    starts = np.concatenate(([start], newlines + 1))
    ends = np.concatenate((newlines, [len(mapped)]))
    full = starts < ends
    blank_start = np.zeros_like(full)
    blank_start[full] = np.isin(np.frombuffer(mapped, np.uint8)[starts[full]], _BLANK_BYTES)
    for line in np.flatnonzero(blank_start):
        full[line] = not mapped[starts[line] : ends[line]].isspace()
    return Spans(starts[full], ends[full], np.flatnonzero(full) + 1)


def _list_spans(mapped: mmap.mmap, start: int, path: str) -> Spans:
    """One row per object of the list. Read as Latin-1 a character is a byte, and UTF-8 keeps JSON's own signs."""
    text = mapped[:].decode("latin-1")
    decoder = json.JSONDecoder()
    starts, ends = array("q"), array("q")
    position = _skip_blanks(text, _skip_blanks(text, start) + 1)
    while text[position : position + 1] != "]" or starts:
        value, end = _decode_at(decoder, text, position, len(starts), path)
        if not isinstance(value, dict):
            place = row_place(path, len(starts), _line(text, position))
            raise DataError(f"{place}: the list holds {type(value).__name__}, not objects only")
        starts.append(position)
        ends.append(end)
        position = _skip_blanks(text, end)
        if text[position : position + 1] != ",":
            break
        position = _skip_blanks(text, position + 1)
    _check_list_end(text, position, path, len(starts))
    return _object_spans(mapped, starts, ends)


def _decode_at(decoder: json.JSONDecoder, text: str, position: int, index: int, path: str) -> tuple[object, int]:
    try:
        return decoder.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise DataError(f"{row_place(path, index, _line(text, error.pos))}: broken JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        place = row_place(path, index, _line(text, position))
        raise DataError(f"{place}: broken JSON: {_fault(error)}") from error


def _check_list_end(text: str, position: int, path: str, num_rows: int) -> None:
    place = f"{row_place(path, max(0, num_rows - 1), _line(text, position))}: broken JSON"
    if text[position : position + 1] != "]":
        raise DataError(f"{place}: the list goes on without a comma, or has no end")
    if _skip_blanks(text, position + 1) != len(text):
        raise DataError(f"{place}: something follows the end of the list")


def _object_spans(mapped: mmap.mmap, starts: "array[int]", ends: "array[int]") -> Spans:
    first_bytes = np.frombuffer(starts, np.int64)
    newlines = np.flatnonzero(np.frombuffer(mapped, np.uint8) == ord("\n"))
    lines = np.searchsorted(newlines, first_bytes) + 1
    return Spans(first_bytes, np.frombuffer(ends, np.int64), lines, numbered=True)


def _skip_blanks(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    assert match is not None  # the pattern matches the empty text
    return match.end()


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
