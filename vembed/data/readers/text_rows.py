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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vembed.errors import DataError

Row = Mapping[str, Any]  # Any: a cell holds whatever the file holds
_CHUNK_BYTES = 1 << 24
_COLUMN_SAMPLE = 200


@dataclass(frozen=True)
class Spans:
    """The places of rows in a file: first byte, byte after the last, and line (from 1), each int64 [rows]."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    lines: NDArray[np.int64]


class TextRows:
    """`len`, `[i] -> row`, `origin(i) -> "train.jsonl:17"`. Picklable: the file is mapped when first read.

    `parse` turns a row's text and origin into the row. `columns` is given where the file names its columns once, else
    taken from a sample of the rows.
    """

    def __init__(
        self,
        path: str,
        spans: Spans,
        parse: Callable[[str, str], Row],
        *,
        columns: tuple[str, ...] | None = None,
        lists_in_text: bool = False,
    ) -> None:
        self.lists_in_text = lists_in_text
        self._path = path
        self._spans = spans
        self._parse = parse
        self._map: mmap.mmap | None = None
        self.columns = self._sampled_columns() if columns is None else columns

    def __len__(self) -> int:
        return len(self._spans.starts)

    def __getitem__(self, index: int) -> Row:
        """The row, by number from 0. Raises DataError with file and line when it cannot be parsed."""
        start, end = int(self._spans.starts[index]), int(self._spans.ends[index])
        return self._parse(self._mapped()[start:end].decode(), self.origin(index))

    def origin(self, index: int) -> str:
        """File and line of the row, as in "train.jsonl:17"."""
        return f"{self._path}:{int(self._spans.lines[index])}"

    def mentions(self, text: bytes) -> bool:
        """True if the bytes occur anywhere in the file."""
        return self._mapped().find(text) >= 0

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            self._map = map_file(self._path)
        return self._map

    def _sampled_columns(self) -> tuple[str, ...]:
        names: dict[str, None] = {}
        for index in np.unique(np.linspace(0, len(self) - 1, _COLUMN_SAMPLE).astype(int)):
            try:
                names.update(dict.fromkeys(self[int(index)]))
            except DataError:
                continue  # a broken row names no columns; it is reported when it is used
        return tuple(names)

    def __getstate__(self) -> dict[str, Any]:  # Any: pickle's own protocol
        return {**self.__dict__, "_map": None}


def map_file(path: str) -> mmap.mmap:
    """The file's bytes, mapped read-only. Raises DataError when it is empty or cannot be read."""
    try:
        with Path(path).open("rb") as file:
            if Path(path).stat().st_size == 0:
                raise DataError(f"{path}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read: {error}") from error


def text_start(mapped: mmap.mmap) -> int:
    """The byte at which the text starts: after a byte-order mark, if there is one."""
    return len(codecs.BOM_UTF8) if mapped[:3] == codecs.BOM_UTF8 else 0


def line_ends(mapped: mmap.mmap, path: str) -> NDArray[np.int64]:
    """The position of every newline, int64 [lines]. Raises DataError with the line when the file is not UTF-8."""
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
