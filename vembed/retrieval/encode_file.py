"""The items of a file into vectors in a file, a block at a time: neither all pictures nor all vectors are ever held.

    block of items -> read -> the new ones among them embedded -> vectors and ids appended

Every distinct item is embedded once: of one that came before, the vectors are read back from the file.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
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
_ROUNDING = 1e-6  # of one text's vector in batches of other lengths
_log = logging.getLogger(__name__)
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
        self._cut: list[int] = []  # texts that were, at a time
        self._vectors_of_all: NDArray[np.float32] | None = None  # while those of all items so far are the same
        self._differ = False

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
        self._tell(items)

    def _tell(self, items: ItemsFile) -> None:
        """Warn of texts that were cut, and of vectors that tell no item apart."""
        if num_cut := sum(self._cut):
            texts = f"{num_cut:,} text{'s are' if num_cut > 1 else ' is'}"
            _log.warning("%s: %s longer than the model reads, and cut at the end", items.path, texts)
        if len(self._rows) > 1 and not self._differ:
            _log.warning(
                "%s: all of its %d distinct items have one and the same vector: to the model they are alike, as texts"
                " are whose words it does not know, or that differ only where they are cut",
                items.path, len(self._rows),
            )  # fmt: skip

    def _compare(self, rows: Iterable[NDArray[np.float32]]) -> None:
        """Note whether any two items have different vectors, of which the first two mostly do."""
        for row in rows:
            if self._differ:
                return
            first = row if self._vectors_of_all is None else self._vectors_of_all
            self._vectors_of_all = first
            self._differ = first.shape != row.shape or not np.allclose(first, row, rtol=0, atol=_ROUNDING)

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
        options = replace(self._options, count_cut=self._cut.append)
        embeddings, refused = encode_readable(self._model.model, self._model.processor, given, options)
        kept = [number for number in range(len(keys)) if number not in refused]
        refuse_not_finite(embeddings, [given[number] for number in kept])
        rows = _rows_of(embeddings)
        self._compare(rows)
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
