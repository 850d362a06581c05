"""Rows that cannot be used: found before training where that is cheap, counted and listed while training."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from vembed.data.dataset import VisualRetrievalDataset
from vembed.data.documents import readable_part
from vembed.data.images import check_file
from vembed.data.settings import DataSettings
from vembed.errors import CheckpointError, DataError
from vembed.types import Example, Item, RowNeeds
from vembed.utils.json_files import read_json_lines

_SHOWN = 10
_REMEDY = "; delete it, and its rows are found anew"
Visit = Callable[[int, Example, Mapping[str, int]], None]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    origin: str
    reason: str


def check_dataset(
    dataset: VisualRetrievalDataset, settings: DataSettings, visit: Visit | None = None
) -> tuple[BadRow, ...]:
    """The rows that are bad by what they say, or that name no existing image file; no picture is opened.

    visit: is given every row that is not bad, and what is used of one that is, with on_bad_sample: skip: its number,
    its example, and the sizes of the files that it names; so rows are read once for both.
    Raises DataError that lists them, with on_bad_sample: raise when there are any, else when there are more than
    max_bad_fraction.
    """
    bad_rows = tuple(_bad_rows(dataset, visit))
    allowed = settings.max_bad_fraction * len(dataset) if settings.on_bad_sample == "skip" else 0
    if len(bad_rows) > allowed:
        raise DataError(_listed(bad_rows, len(dataset), settings.on_bad_sample))
    return bad_rows


def visit_rows(dataset: VisualRetrievalDataset, visit: Visit) -> None:
    """Give `visit` every row that can be used, as `check_dataset` does."""
    for _ in _bad_rows(dataset, visit):
        pass


class BadSamples:
    """Counts bad rows, each once, and lists them in `folder`/bad_samples.jsonl; what is listed there already counts.

    A row that is used without some of its documents counts as well, and each of those is listed by itself, with
    "left_out": "document". With on_bad_sample: raise, the first one raises; with skip, the one that exceeds
    max_bad_fraction of the rows. Of several processes one gets the folder.
    """

    def __init__(self, settings: DataSettings, folder: str | Path | None = None) -> None:
        self._policy: Literal["raise", "skip"] = settings.on_bad_sample
        self._max_fraction = settings.max_bad_fraction
        self._path = None if folder is None else Path(folder) / "bad_samples.jsonl"
        self._origins: set[str] = set()
        self._documents: dict[tuple[str, str], None] = {}  # origin and reason
        for line in self._listed():
            self._note(line)
        self._num_rows: int | None = None

    @property
    def num_bad(self) -> int:
        """Bad rows so far, each counted once; among them those that lack documents."""
        return len(self._origins | {origin for origin, _ in self._documents})

    def set_num_rows(self, num_rows: int) -> None:
        """Set the number of rows in all, of which max_bad_fraction is a share."""
        self._num_rows = num_rows

    def add(self, origin: str, reason: str) -> None:
        """Note a bad row. Raises DataError when that is one too many."""
        if self._policy == "raise":
            raise DataError(f"{reason} (on_bad_sample: skip passes over such rows)")
        if origin not in self._origins:
            self._add({"origin": origin, "reason": reason})

    def add_documents(self, origin: str, reasons: Sequence[str]) -> None:
        """Note the documents that a row is used without. Raises DataError when that row is one too many."""
        for reason in reasons:
            if (origin, reason) not in self._documents:
                self._add({"origin": origin, "reason": reason, "left_out": "document"})

    def _add(self, line: Mapping[str, str]) -> None:
        self._note(line)
        self._write(line)
        if self._num_rows is not None and self.num_bad > self._max_fraction * self._num_rows:
            some = ", or not with all of their documents" if self._documents else ""
            raise DataError(
                f"{self.num_bad} of {self._num_rows} rows cannot be used{some}, over"
                f" max_bad_fraction = {self._max_fraction}; the last: {line['reason']}"
                f"{f' (all are listed in {self._path})' if self._path else ''}"
            )

    def _note(self, line: Mapping[str, str]) -> None:
        if line.get("left_out") == "document":
            self._documents[line["origin"], line["reason"]] = None
        else:
            self._origins.add(line["origin"])

    def _write(self, line: Mapping[str, str]) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(line, ensure_ascii=False) + "\n"
        with self._path.open("ab+") as file:
            if file.tell() and _last_byte(file) != b"\n":
                text = "\n" + text
            file.write(text.encode("utf-8", "backslashreplace"))

    def _listed(self) -> Iterator[Mapping[str, str]]:
        if self._path is None:
            return
        lines = read_json_lines(self._path, CheckpointError, remedy=_REMEDY, last_may_be_half=True)
        if not all(isinstance(line.get(key), str) for line in lines for key in ("origin", "reason")):
            raise CheckpointError(f"{self._path} is damaged{_REMEDY}: an origin or a reason is no text")
        yield from lines


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _bad_rows(dataset: VisualRetrievalDataset, visit: Visit | None) -> Iterator[BadRow]:
    width: int | None = None
    for index in range(len(dataset)):
        example: Example | None = None
        sizes: dict[str, int] = {}
        try:
            example = dataset[index]
            for item in (example.query, *example.positives, *example.negatives, *example.ignored):
                _note_sizes(sizes, item)
            if example.embeddings is not None:
                width = _same_width(width, len(example.embeddings.query), example.origin)
        except DataError as error:
            yield BadRow(dataset.origin(index), str(error))
            example = None if example is None else _usable_part(example, dataset.reader.needs, sizes)
        if visit is not None and example is not None:
            visit(index, example, sizes)


def _usable_part(example: Example, needs: RowNeeds, sizes: dict[str, int]) -> Example | None:
    """What of a bad row is used with on_bad_sample: skip; None when nothing is. sizes: taken in, of its files."""
    try:
        return readable_part(example, partial(_note_sizes, sizes), needs)[0]
    except DataError:
        return None


def _note_sizes(sizes: dict[str, int], item: Item) -> None:
    for source in item.images:
        size = check_file(source)
        if source.path is not None and size is not None:
            sizes[source.path] = size


def _same_width(width: int | None, own: int, origin: str) -> int:
    if width is not None and own != width:
        raise DataError(f"{origin}: its embeddings have {own} numbers, those of the rows before it {width}")
    return own


def _listed(bad_rows: Sequence[BadRow], num_rows: int, policy: str) -> str:
    lines = [f"{len(bad_rows)} of {num_rows} rows cannot be used:"]
    lines += [f"  {row.reason}" for row in bad_rows[:_SHOWN]]
    if len(bad_rows) > _SHOWN:
        lines.append(f"  and {len(bad_rows) - _SHOWN} more")
    lines.append(
        "Mend them, or say on_bad_sample: skip" if policy == "raise" else "Mend them, or raise max_bad_fraction"
    )
    return "\n".join(lines)
