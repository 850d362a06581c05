"""Whether training rows can teach anything under the loss, looked up before a model is opened.

Rows are read, in an order that mixes sorted data, until enough of them are together to compare: of ordinary data the
first few. All are read of data that cannot teach, and pictures in files count as different if their files are.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vembed.data.batches.sampling import DatasetSize, batch_sizes
from vembed.data.collators.default import Collator
from vembed.data.dataset import VisualRetrievalDataset
from vembed.data.hashing import content_hash, mixed_hash, text_hash
from vembed.data.settings import DataSettings
from vembed.errors import DataError
from vembed.losses.lacks import BatchCheck, Lack
from vembed.types import Example, Item, LoadedExample, LoadedItem

_log = logging.getLogger(__name__)
_FIRST_ROWS, _MOST_ROWS = 32, 1024  # looked at together; each look has twice the rows of the one before


@dataclass
class _Kinds:
    """The distinct groups (None: of rows without), queries and documents of the rows that were looked at."""

    groups: set[int | None] = field(default_factory=set)
    queries: set[int] = field(default_factory=set)
    documents: set[int] = field(default_factory=set)

    def add(self, rows: Sequence[LoadedExample]) -> None:
        """Count rows in."""
        self.groups.update(row.group for row in rows)
        self.queries.update(row.query.content_hash for row in rows)
        self.documents.update(item.content_hash for row in rows for item in row.positives)

    def shared(self) -> str:
        """What all rows have in common, as a sentence; "" if nothing."""
        if len(self.groups) == 1 and None not in self.groups:
            return "All of its rows are of one group. "
        shared = "query" if len(self.queries) == 1 else "document" if len(self.documents) == 1 else ""
        return f"All of its rows have one {shared}. " if shared else ""


def check_rows_teach(
    datasets: Sequence[VisualRetrievalDataset], settings: DataSettings, check: BatchCheck, *, batch_size: int
) -> None:
    """Refuse data of which no batch can teach anything; warn of one set of several, and of a gradient without sense.

    batch_size: rows of one loss. Raises DataError.
    """
    found = [_find_lack(dataset, settings, check, batch_size) for dataset in datasets]
    lacks = [(dataset, *one) for dataset, one in zip(datasets, found, strict=True) if one is not None]
    texts = [
        f"data set {dataset.name} teaches nothing: {lack.reason}. {cause}To mend it: {lack.advice}"
        for dataset, lack, cause in lacks
    ]
    if len(lacks) == len(datasets) and not any(lack.moves for _, lack, _ in lacks):
        raise DataError("\n".join(texts))
    for text in texts:
        _log.warning("%s", text)


def _find_lack(
    dataset: VisualRetrievalDataset, settings: DataSettings, check: BatchCheck, batch_size: int
) -> tuple[Lack, str] | None:
    """What all rows lack, and why, as a sentence; None where some can teach, or none can be used (the loader says)."""
    rows_at_once = max(batch_sizes(DatasetSize(dataset.name, len(dataset), dataset.weight), batch_size, world_size=1))
    collate = Collator(num_hard_negatives=settings.num_hard_negatives)
    lack, kinds = None, _Kinds()
    for rows in _looks(dataset, settings, alone=rows_at_once == 1):
        try:
            lack = check(collate(rows).targets)
        except DataError:
            continue  # of a row that the loader will name
        if lack is None:
            return None
        kinds.add(rows)
    if lack is None:
        return None
    if batch_size == 1:
        return lack, "A batch is a single row (batch_size: 1). "
    if rows_at_once == 1:
        return lack, f"It gives a single row an epoch, of {len(dataset)} with weight {dataset.weight:g}. "
    return lack, kinds.shared()


def _looks(dataset: VisualRetrievalDataset, settings: DataSettings, *, alone: bool) -> Iterator[list[LoadedExample]]:
    """Rows that may stand in one batch: each alone, or blocks that overlap by a row."""
    size, block = 1 if alone else _FIRST_ROWS, list[LoadedExample]()
    for index in np.random.default_rng(0).permutation(len(dataset)).tolist():
        try:
            block.append(_keyed(dataset[index], settings))
        except DataError:
            continue
        if len(block) == size:
            yield block
            block = [] if alone else block[-1:]
            size = 1 if alone else min(2 * size, _MOST_ROWS)
    if block:
        yield block


def _keyed(example: Example, settings: DataSettings) -> LoadedExample:
    """The row as a batch has it, with the keys of its items and nothing of their pictures."""
    query = example.query
    shown = settings.query_image_as_negative and query.text is not None and query.images
    return LoadedExample(
        query=_key(query),
        positives=tuple(map(_key, example.positives)),
        negatives=tuple(map(_key, example.negatives)),
        group=example.group,
        origin=example.origin,
        ignored=tuple(_key(item).content_hash for item in example.ignored),
        scores=example.scores,
        embeddings=example.embeddings,
        query_image=_key(replace(query, text=None)) if shown else None,
    )


def _key(item: Item) -> LoadedItem:
    paths = [source.path for source in item.images if source.path is not None]
    if len(paths) == len(item.images) > 0:
        return LoadedItem(item.text, (), mixed_hash("files", text_hash(item.text or ""), *paths))
    return LoadedItem(item.text, (), content_hash(item))
