"""Relevance judgements: a data set's rows as queries, the gallery they search, and each query's relevant documents.

| part | from the rows |
|---|---|
| queries | every distinct query, by content; rows with equal queries are one query with all of their positives |
| documents | every distinct document that a row names, positives and negatives, by content |
| relevant | the query's positives, but none of score 0 or below; positives of its groups but its explicit negatives |
| excluded | the query's own content, wherever it stands in the gallery: finding itself is no success |
| query images | other documents that show a picture of the query, not relevant; `exclude_query_image` excludes them |

Scores that are a teacher's say nothing of relevance (`RowNeeds.scores_say_relevance`): then all positives are relevant.
A query that is left without a relevant document (its only positive is itself, or of score 0) cannot be measured; it is
counted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from vembed.data.dataset import VisualRetrievalDataset
from vembed.data.documents import readable_part
from vembed.data.hashing import content_hash, image_hash
from vembed.data.images import read_image
from vembed.data.settings import DataSettings
from vembed.data.validation import BadRow, BadSamples
from vembed.errors import DataError
from vembed.types import Example, Item, Ragged

Keys = NDArray[np.int64]


@dataclass(frozen=True)
class RetrievalSet:
    """Queries and the gallery they search, ready to be measured.

    query_keys [queries] and document_keys [documents] are content hashes. relevant, excluded, query_images: document
    numbers per query. groups [queries]: queries that are not independent of each other (of one group, or about one
    picture) have the same number. num_unmeasured: queries that were left out. skipped: rows that could not be used.
    left_out: documents that could not be, of other rows.
    """

    name: str
    mode: str
    queries: tuple[Item, ...]
    documents: tuple[Item, ...]
    query_keys: Keys
    document_keys: Keys
    relevant: Ragged
    excluded: Ragged
    query_images: Ragged
    groups: Keys
    num_rows: int
    num_unmeasured: int = 0
    skipped: tuple[BadRow, ...] = ()
    left_out: tuple[BadRow, ...] = ()

    @property
    def holds_query_images(self) -> bool:
        """True if some query's own picture stands in the gallery."""
        return len(self.query_images.values) > 0

    def without_query_images(self) -> "RetrievalSet":
        """The same set with every query's own pictures out of its gallery."""
        both = [own + shown for own, shown in zip(_lists(self.excluded), _lists(self.query_images), strict=True)]
        return replace(self, excluded=_ragged(both))

    @property
    def num_groups(self) -> int:
        """Number of independent groups that the queries form."""
        return len(np.unique(self.groups))


def retrieval_set(
    dataset: VisualRetrievalDataset, settings: DataSettings, read: Callable[[Item], object] | None = None
) -> RetrievalSet:
    """The retrieval set of a data set's rows.

    read: how the measured model reads an item; default: its pictures are decoded. Raises DataError for rows that cannot
    be used, as `on_bad_sample` and `max_bad_fraction` say, and when no query is left to measure. To skip what cannot be
    read, every distinct item is read once here, however many rows name it; a document that cannot be read is left out
    where the row has another positive.
    """
    builder = _RetrievalSetBuilder()
    check = _ReadOnce(read or partial(_decode, max_pixels=settings.max_image_pixels))
    skipped: list[BadRow] = []
    left_out: list[BadRow] = []
    bad_samples = BadSamples(settings)
    bad_samples.set_num_rows(len(dataset))
    for index in range(len(dataset)):
        origin = dataset.origin(index)
        reasons: tuple[str, ...] = ()
        try:
            example = dataset[index]
            if settings.on_bad_sample == "skip":
                example, reasons = readable_part(example, check, dataset.reader.needs)
            builder.add(example if dataset.reader.needs.scores_say_relevance else replace(example, scores=()))
        except DataError as error:
            bad_samples.add(origin, str(error))
            skipped.append(BadRow(origin, str(error)))
            continue
        bad_samples.add_documents(origin, reasons)
        left_out += [BadRow(origin, reason) for reason in reasons]
    return builder.build(dataset, tuple(skipped), tuple(left_out))


class _ReadOnce:
    """Reads items, each content once. What cannot be read is read again, so that each message names its own row."""

    def __init__(self, read: Callable[[Item], object]) -> None:
        self._read = read
        self._readable: set[int] = set()

    def __call__(self, item: Item) -> None:
        """Raise DataError for an item that cannot be read."""
        key = content_hash(item)  # of a file, known by its time of change
        if key not in self._readable:
            self._read(item)
            self._readable.add(key)


@dataclass
class _Query:
    """One distinct query while rows are read; document numbers and group keys."""

    item: Item
    positives: set[int] = field(default_factory=set)
    negatives: set[int] = field(default_factory=set)
    groups: set[int] = field(default_factory=set)

    def dependency_keys(self) -> set[int]:
        """Keys of groups and pictures; two queries that share one are not independent."""
        return self.groups | {image_hash(source) for source in self.item.images}


@dataclass
class _RetrievalSetBuilder:
    """Collects rows. Queries by content hash; documents get numbers in order of their first mention."""

    queries: dict[int, _Query] = field(default_factory=dict)
    documents: dict[int, int] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    group_documents: dict[int, set[int]] = field(default_factory=dict)
    image_documents: dict[int, set[int]] = field(default_factory=dict)

    def add(self, example: Example) -> None:
        """Take in a row, wholly or, when an image cannot be read, not at all."""
        key = content_hash(example.query)
        hashes = [content_hash(item) for item in (*example.positives, *example.negatives)]
        query = self.queries.setdefault(key, _Query(example.query))
        numbers = [
            self._number(item_key, item)
            for item_key, item in zip(hashes, (*example.positives, *example.negatives), strict=True)
        ]
        positives = [number for number, score in zip(numbers, _positive_scores(example), strict=False) if score > 0]
        query.positives.update(positives)
        query.negatives.update(numbers[len(example.positives) :])
        if example.group is not None:
            query.groups.add(example.group)
            self.group_documents.setdefault(example.group, set()).update(positives)

    def build(
        self, dataset: VisualRetrievalDataset, skipped: tuple[BadRow, ...], left_out: tuple[BadRow, ...]
    ) -> RetrievalSet:
        """The set, without queries that have no relevant document."""
        relevant = {key: self._relevant(key) for key in self.queries}
        kept = {key: query for key, query in self.queries.items() if relevant[key]}
        if not kept:
            raise DataError(f"{dataset.name}: {_nothing_to_measure(len(dataset), len(self.queries), len(skipped))}")
        return RetrievalSet(
            name=dataset.name,
            mode=dataset.mode,
            queries=tuple(query.item for query in kept.values()),
            documents=tuple(self.items),
            query_keys=np.array(list(kept), dtype=np.int64),
            document_keys=np.array(list(self.documents), dtype=np.int64),
            relevant=_ragged(relevant[key] for key in kept),
            excluded=_ragged([self.documents[key]] if key in self.documents else [] for key in kept),
            query_images=_ragged(self._query_images(key, relevant[key]) for key in kept),
            groups=independent_groups([query.dependency_keys() for query in kept.values()]),
            num_rows=len(dataset) - len(skipped),
            num_unmeasured=len(self.queries) - len(kept),
            skipped=skipped,
            left_out=left_out,
        )

    def _number(self, key: int, item: Item) -> int:
        if key not in self.documents:
            self.documents[key] = len(self.items)
            for source in item.images:
                self.image_documents.setdefault(image_hash(source), set()).add(len(self.items))
            self.items.append(item)
        return self.documents[key]

    def _relevant(self, key: int) -> list[int]:
        query = self.queries[key]
        same_group = {number for group in query.groups for number in self.group_documents[group]}
        own = {self.documents[key]} if key in self.documents else set()
        return sorted((query.positives | (same_group - query.negatives)) - own)

    def _query_images(self, key: int, relevant: Sequence[int]) -> list[int]:
        pictures = (image_hash(source) for source in self.queries[key].item.images)
        shown = {number for picture in pictures for number in self.image_documents.get(picture, ())}
        return sorted(shown - {self.documents.get(key)} - set(relevant))


def _positive_scores(example: Example) -> tuple[float, ...]:
    """The scores of the positives, 1 each if the row has none."""
    return example.scores[: len(example.positives)] or (1.0,) * len(example.positives)


def independent_groups(groups: Sequence[Iterable[int]]) -> Keys:
    """A group number for each query, int64 [queries], equal for queries that share a key, directly or through others.

    >>> independent_groups([{7}, {8}, {7, 9}, {9}, set()])
    array([0, 1, 0, 0, 2])
    """
    parents: dict[object, object] = {}

    def root(node: object) -> object:
        while parents.setdefault(node, node) != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for query, keys in enumerate(groups):
        for key in keys:
            parents[root(("group", key))] = root(("query", query))
    roots = [root(("query", query)) for query in range(len(groups))]
    numbers = {node: number for number, node in enumerate(dict.fromkeys(roots))}
    return np.array([numbers[node] for node in roots], dtype=np.int64)


def _decode(item: Item, *, max_pixels: int) -> None:
    for source in item.images:
        read_image(source, max_pixels=max_pixels)


def _ragged(rows: Iterable[Sequence[int]]) -> Ragged:
    lists = list(rows)
    values = torch.tensor([number for row in lists for number in row], dtype=torch.int64)
    return Ragged(values, torch.tensor([len(row) for row in lists], dtype=torch.int64))


def _lists(ragged: Ragged) -> list[list[int]]:
    return [part.tolist() for part in torch.split(ragged.values, ragged.counts.tolist())]


def _nothing_to_measure(num_rows: int, num_queries: int, num_skipped: int) -> str:
    if num_queries:
        return (
            f"nothing to measure: no document besides itself is relevant to any of the {num_queries} queries (a"
            " positive whose `score` is 0 or below is not, unless it is a teacher's: --use_distillation says so)"
        )
    return f"nothing to measure: it has {num_rows} rows, of which {num_skipped} cannot be used"
