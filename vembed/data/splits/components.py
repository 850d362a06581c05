"""Connected components of rows that share a group, a text or a picture, which no split may part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vembed.data.dataset import VisualRetrievalDataset
from vembed.data.documents import readable_part
from vembed.data.hashing import image_hash, mixed_hash, text_hash
from vembed.data.splits.duplicates import file_content_keys, file_size
from vembed.errors import DataError
from vembed.types import Example, Item, RowNeeds

_MISSING = -1


@dataclass(frozen=True)
class Components:
    """Rows are numbered through all data sets.

    labels: int64 [rows], the component of each row, -1 for a row that cannot be used. keys: int64 [components], the
    smallest content key in it, which does not depend on the order of rows or data sets. one_kind: bool [components],
    True where all rows share one key (their group, one text or picture), so that all is relevant to all.
    """

    labels: NDArray[np.int64]
    keys: NDArray[np.int64]
    one_kind: NDArray[np.bool_]


def find_components(datasets: Sequence[VisualRetrievalDataset]) -> Components:
    """The connected components of all rows of all data sets.

    Rows are connected by an equal group, an equal text, or an equal picture among query and positives. The text of an
    item that has a picture too (a composed query such as "in red") does not connect.
    """
    rows, keys = _row_keys(datasets)
    num_rows = sum(len(dataset) for dataset in datasets)
    roots = _connected_roots(rows, keys, num_rows)
    smallest = np.full(num_rows, np.iinfo(np.int64).max)
    np.minimum.at(smallest, roots[rows], keys)
    readable = np.zeros(num_rows, bool)
    readable[rows] = True
    found, labels = np.unique(roots[readable], return_inverse=True)
    all_labels = np.full(num_rows, _MISSING, np.int64)
    all_labels[readable] = labels
    return Components(all_labels, smallest[found], _of_one_kind(rows, keys, all_labels, len(found)))


def _of_one_kind(
    rows: NDArray[np.int64], keys: NDArray[np.int64], labels: NDArray[np.int64], num_components: int
) -> NDArray[np.bool_]:
    """Bool [components]: some key is in every row of it. rows, keys: [pairs], sorted by key, equal ones by row."""
    first = np.ones(len(keys), bool)  # of the same row and key
    first[1:] = (keys[1:] != keys[:-1]) | (rows[1:] != rows[:-1])
    rows, keys = rows[first], keys[first]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    num_rows = np.diff(np.append(starts, len(keys)))  # [different keys]
    most = np.zeros(num_components, np.int64)
    np.maximum.at(most, labels[rows[starts]], num_rows)
    return np.asarray(most == np.bincount(labels[labels >= 0], minlength=num_components))


def _row_keys(datasets: Sequence[VisualRetrievalDataset]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers and content keys, int64 [pairs] each, sorted by key, equal ones by row.

    A document whose file is missing or empty has no key, as the loader leaves it out; a row without any key cannot be
    trained on, and nothing else of it counts.
    """
    rows: list[int] = []
    keys: list[int] = []
    file_rows: list[int] = []
    files: list[str] = []
    sizes = _FileSizes()
    for row, dataset, given in readable_examples(datasets):
        example = sizes.usable(given, dataset.reader.needs)
        if example is None:
            continue
        for key in _content_keys(example):
            rows.append(row)
            keys.append(key)
        for path in _image_files(example):
            file_rows.append(row)
            files.append(path)
    key_of = file_content_keys(files, sizes.known)
    all_rows = np.array(rows + file_rows, np.int64)
    all_keys = np.array(keys + [mixed_hash("image", key_of[path]) for path in files], np.int64)
    order = np.lexsort((all_rows, all_keys))
    return all_rows[order], all_keys[order]


class _FileSizes:
    """Which documents name a file that holds something. known: the bytes of each file asked for, None for no file."""

    def __init__(self) -> None:
        self.known: dict[str, int | None] = {}

    def usable(self, example: Example, needs: RowNeeds) -> Example | None:
        """The row without the documents whose files hold nothing; None when it cannot be used without them."""
        items: tuple[Item, ...] = (example.query, *example.positives)
        if needs.negatives or needs.num_documents > 1:
            items += example.negatives
        if all(map(self._is_there, items)):  # no more is done for almost every row
            return example
        try:
            return readable_part(example, self._check, needs)[0]
        except DataError:
            return None

    def _is_there(self, item: Item) -> bool:
        return all(source.path is None or self._size(source.path) for source in item.images)

    def _check(self, item: Item) -> None:
        if not self._is_there(item):
            raise DataError(f"{item.origin}: a file of it is missing or empty")

    def _size(self, path: str) -> int | None:
        if path not in self.known:
            self.known[path] = file_size(path)
        return self.known[path]


def readable_examples(
    datasets: Sequence[VisualRetrievalDataset],
) -> Iterator[tuple[int, VisualRetrievalDataset, Example]]:
    """Row number, data set and example of the rows that can be read; check_dataset and the loader report the others."""
    places = ((dataset, index) for dataset in datasets for index in range(len(dataset)))
    for row, (dataset, index) in enumerate(places):
        try:
            example = dataset[index]
        except DataError:
            continue
        yield row, dataset, example


def _content_keys(example: Example) -> Iterator[int]:
    if example.group is not None:
        yield mixed_hash("group", example.group)
    for item in _query_and_positives(example):
        if item.text is not None and not item.images:
            yield mixed_hash("text", text_hash(item.text))
        for source in item.images:
            if source.path is None:
                yield mixed_hash("image", image_hash(source))


def _image_files(example: Example) -> Iterator[str]:
    return (source.path for item in _query_and_positives(example) for source in item.images if source.path is not None)


def _query_and_positives(example: Example) -> tuple[Item, ...]:
    return (example.query, *example.positives)


def _connected_roots(rows: NDArray[np.int64], keys: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """The root row of each row, int64 [rows]: union-find over neighbours with an equal key."""
    parents = list(range(num_rows))
    same = np.flatnonzero(keys[1:] == keys[:-1])
    for one, other in zip(rows[same].tolist(), rows[same + 1].tolist(), strict=True):
        first, second = _root(parents, one), _root(parents, other)
        parents[max(first, second)] = min(first, second)
    return np.array([_root(parents, row) for row in range(num_rows)], np.int64)


def _root(parents: list[int], row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row


def class_keys(datasets: Sequence[VisualRetrievalDataset]) -> list[int]:
    """The classes of training data: the distinct groups of all rows that can be read, ascending.

    Every row is read once; no picture is opened.
    """
    return sorted({example.group for _, _, example in readable_examples(datasets) if example.group is not None})
