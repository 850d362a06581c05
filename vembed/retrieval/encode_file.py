"""The items of a file into vectors in a file, a block at a time: neither all pictures nor all vectors are ever held.

    block of items -> read -> the new ones among them embedded -> vectors and ids appended

Every distinct item is embedded once: of one that came before, the vectors are read back from the file.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vembed.data.hashing import content_hash
from vembed.errors import DataError
from vembed.grad_cache.cachex.tree_utils import ragged_tokens
from vembed.model.encoding import EncodeOptions, encode_readable
from vembed.model.modeling import VisualRetrievalModel
from vembed.retrieval.encode import refuse_not_finite
from vembed.retrieval.items_file import ItemsFile, NamedItem
from vembed.retrieval.vectors_file import NamedVectors, VectorsWriter
from vembed.types import Embeddings, Item
from vembed.utils.files import atomic_file

_BATCHES_AT_ONCE = 8
OnBadSample = Literal["raise", "skip"]
Progress = Callable[[int, int], None]  # items done, items in all


@dataclass
class LeftOut:
    """What of a file cannot be embedded, and why. With `policy` raise, the first such item raises.

    With skip, the one that exceeds `max_fraction` of `num_items`.
    """

    policy: OnBadSample
    max_fraction: float
    num_items: int
    lines: list[Mapping[str, str]] = field(default_factory=list)

    def add(self, origin: str, error: DataError) -> None:
        """Note an item. Raises DataError when that is one too many."""
        if self.policy == "raise":
            raise DataError(f"{error} (--on_bad_sample skip leaves such items out)") from error
        self.lines.append({"origin": origin, "reason": str(error)})
        if len(self.lines) > self.max_fraction * self.num_items:
            raise DataError(
                f"{len(self.lines)} of {self.num_items} items cannot be used, over max_bad_fraction ="
                f" {self.max_fraction}; the last: {error}"
            ) from error

    def write(self, path: Path) -> None:
        """Write the list, or take away that of an earlier time when nothing is left out."""
        if not self.lines:
            path.unlink(missing_ok=True)
            return
        with atomic_file(path) as unfinished:
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines]
            unfinished.write_text("".join(lines), encoding="utf-8")


class FileEncoder:
    """Embeds items and appends their vectors. left_out: what becomes of those that cannot be read."""

    def __init__(
        self, model: VisualRetrievalModel, options: EncodeOptions, writer: VectorsWriter, left_out: LeftOut
    ) -> None:
        self._model = model
        self._options = options
        self._writer = writer
        self._left_out = left_out
        self._rows: dict[int, int] = {}  # content hash -> the row that holds its vectors

    def encode(self, items: ItemsFile, progress: Progress | None = None) -> None:
        """Append the vectors of all items that can be read. Raises DataError as `left_out` says, ModelError."""
        size = _BATCHES_AT_ONCE * self._options.batch_size
        for start in range(0, len(items), size):
            stop = min(start + size, len(items))
            read, unreadable = _read(items, range(start, stop))
            unreadable |= self._append(read)
            for number in sorted(unreadable):
                self._left_out.add(items.origin(number), unreadable[number])
            if progress is not None:
                progress(stop, len(items))

    def _append(self, block: Mapping[int, "_Read"]) -> dict[int, DataError]:
        """Append the vectors of a block's items; of those that the model cannot read, why, by their numbers."""
        new = {one.key: one.named.item for one in block.values() if one.key not in self._rows}
        vectors, refused = self._encode_distinct(new)
        names: list[str] = []
        rows: list[NDArray[np.float32]] = []
        for one in block.values():
            if one.key not in refused:
                rows.append(vectors[one.key] if one.key in vectors else self._writer.vectors_of(self._rows[one.key]))
                self._rows.setdefault(one.key, self._writer.num_rows + len(names))
                names.append(one.named.name)
        if rows:
            counts = None if self._model.spec.scoring == "single" else np.array([len(row) for row in rows])
            self._writer.add(NamedVectors(names, np.concatenate(rows), counts))
        return {number: refused[one.key] for number, one in block.items() if one.key in refused}

    def _encode_distinct(
        self, items: Mapping[int, Item]
    ) -> tuple[dict[int, NDArray[np.float32]], dict[int, DataError]]:
        """The vectors [vectors, dim] of each item by its key; of those that cannot be read, why."""
        keys, given = list(items), list(items.values())
        embeddings, refused = encode_readable(self._model.model, self._model.processor, given, self._options)
        kept = [number for number in range(len(keys)) if number not in refused]
        refuse_not_finite(embeddings, [given[number] for number in kept])
        rows = _rows_of(embeddings)
        return (
            {keys[number]: row for number, row in zip(kept, rows, strict=True)},
            {keys[number]: error for number, error in refused.items()},
        )


@dataclass(frozen=True)
class _Read:
    """An item of the file, and its content hash."""

    named: NamedItem
    key: int


def _read(items: ItemsFile, numbers: range) -> tuple[dict[int, _Read], dict[int, DataError]]:
    """The items of these numbers; of those that cannot be read, why."""
    found: dict[int, _Read] = {}
    unreadable: dict[int, DataError] = {}
    for number in numbers:
        try:
            named = items[number]
            found[number] = _Read(named, content_hash(named.item))
        except DataError as error:
            unreadable[number] = error
    return found, unreadable


def _rows_of(embeddings: Embeddings) -> list[NDArray[np.float32]]:
    """The vectors of each row, [vectors, dim]."""
    if embeddings.vectors.ndim == 2:
        return list(embeddings.vectors.unsqueeze(1).numpy())
    tokens = ragged_tokens(embeddings)
    return np.split(tokens.values.numpy(), tokens.counts.cumsum(0)[:-1].numpy()) if len(tokens.counts) else []
