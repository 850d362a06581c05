"""Rows of a text file, read one at a time from the mapped file, each with the line where it starts.

Why not `datasets`' readers for JSON and CSV: Arrow needs one type per column, so a file whose `positive` is a text in
one row and a list in another is refused or changed; its CSV reader turns "007" into 7 and "NA" into null; and the line
of a row is lost. Instead the file is passed over once to note where each row starts and ends (24 bytes of memory per
row: 240 MB for ten million), and a row is parsed when it is asked for.
"""

import codecs
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vembed.data.readers.source_file import SourceFile
from vembed.errors import DataError

Row = Mapping[str, Any]  # Any: a cell holds whatever the file holds
_CHUNK_BYTES = 1 << 24
_COLUMN_SAMPLE = 200
_HEAD_BYTES = 1 << 12
_OTHER_ENCODINGS = {  # by how a file of it starts; the longer first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\x1f\x8b": "compressed (gzip)",
    b"PK\x03\x04": "a zip archive (as .xlsx is)",
    b"PAR1": "Parquet",
}


@dataclass(frozen=True)
class Spans:
    """The places of rows in a file: first byte, byte after the last, and line (from 1), each int64 [rows].

    numbered: rows are known by their numbers, for several may start in one line.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    lines: NDArray[np.int64]
    numbered: bool = False


class TextRows:
    """`len`, `[i] -> row`, `origin(i) -> "train.jsonl:17"`, or "train.json: row 5 (line 7)". Picklable.

    `parse` turns a row's text and origin into the row. `columns` is given where the file names its columns once, else
    taken from a sample of the rows.
    """

    def __init__(
        self,
        source: SourceFile,
        spans: Spans,
        parse: Callable[[str, str], Row],
        *,
        columns: tuple[str, ...] | None = None,
        lists_in_text: bool = False,
    ) -> None:
        self.lists_in_text = lists_in_text
        self._source = source
        self._spans = spans
        self._parse = parse
        self.columns = self._sampled_columns() if columns is None else columns

    def __len__(self) -> int:
        return len(self._spans.starts)

    def __getitem__(self, index: int) -> Row:
        """The row, by number from 0. Raises DataError with its origin when it cannot be parsed."""
        start, end = int(self._spans.starts[index]), int(self._spans.ends[index])
        return self._parse(self._source.text(start, end), self.origin(index))

    def origin(self, index: int) -> str:
        """File and line of the row, as in "train.jsonl:17"; of a list its number too."""
        line = int(self._spans.lines[index])
        return row_place(self._source.path, index, line) if self._spans.numbered else f"{self._source.path}:{line}"

    def number(self, index: int) -> int:
        """The line of the row; of a list its number from 1."""
        return index + 1 if self._spans.numbered else int(self._spans.lines[index])

    def mentions(self, text: bytes) -> bool:
        """True if the bytes occur anywhere in the file."""
        return self._source.map.find(text) >= 0

    def _sampled_columns(self) -> tuple[str, ...]:
        names: dict[str, None] = {}
        for index in np.unique(np.linspace(0, len(self) - 1, _COLUMN_SAMPLE).astype(int)):
            try:
                names.update(dict.fromkeys(self[int(index)]))
            except DataError:
                continue  # a broken row names no columns; it is reported when it is used
        return tuple(names)


def row_place(path: str, index: int, line: int) -> str:
    """The origin of a row that is known by its number.

    >>> row_place("train.json", 4, 7)
    'train.json: row 5 (line 7)'
    """
    return f"{path}: row {index + 1} (line {line})"


def text_start(mapped: mmap.mmap) -> int:
    """The byte at which the text starts: after a byte-order mark, if there is one."""
    return len(codecs.BOM_UTF8) if mapped[:3] == codecs.BOM_UTF8 else 0


def line_ends(mapped: mmap.mmap | bytes, path: str) -> NDArray[np.int64]:
    """The position of every newline, int64 [lines]. Raises DataError with the line when the file is not UTF-8."""
    _refuse_other_encoding(mapped, path)
    decoder = codecs.getincrementaldecoder("utf-8")()
    found, num_lines = [np.empty(0, np.int64)], 0
    for start in range(0, len(mapped), _CHUNK_BYTES):
        chunk = mapped[start : start + _CHUNK_BYTES]
        try:
            decoder.decode(chunk, final=start + _CHUNK_BYTES >= len(mapped))
        except UnicodeDecodeError as error:
            line = num_lines + error.object[: error.start].count(b"\n") + 1
            raise DataError(f"{path}:{line}: not UTF-8: {error.reason}; save the file as UTF-8") from error
        found.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + start)
        num_lines += len(found[-1])
    return np.concatenate(found)


def refuse_old_line_ends(mapped: mmap.mmap | bytes, path: str) -> None:
    """Raise DataError when carriage returns alone end the lines: the file would be one line, whatever ends it."""
    first = mapped.find(b"\n")
    first = len(mapped) if first < 0 else first
    if mapped.find(b"\r", 0, first - 1) >= 0 and not mapped[first : first + _HEAD_BYTES].strip():
        raise DataError(
            f"{path}: its lines end with carriage returns alone, as on old Macs; save it with line feeds (LF or CRLF)"
        )


def _refuse_other_encoding(mapped: mmap.mmap | bytes, path: str) -> None:
    head = mapped[:_HEAD_BYTES]
    for start, encoding in _OTHER_ENCODINGS.items():
        if head.startswith(start):
            raise DataError(f"{path}: the file is {encoding}, not text in UTF-8; save it as UTF-8")
    if head.count(0) > len(head) // 3:
        raise DataError(
            f"{path}: the file is full of zero bytes, as UTF-16 without a byte-order mark is; save it as UTF-8"
        )
