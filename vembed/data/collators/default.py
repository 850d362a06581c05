"""Examples into a batch: queries, the distinct documents, and keys that say which belongs to which.

Items are left as they are: a model's processor makes its inputs of them later, chunk by chunk, and family differences
are the processor's, so this one collator serves every family. Documents are in the order: the
positives of all rows, then the negatives. Equal documents (same content, same augmentation draw) are one column, so
that nothing is encoded twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from vembed.data.fields.embeddings import stack_embeddings
from vembed.data.negatives import check_negatives, with_chosen_negatives
from vembed.errors import DataError
from vembed.types import NO_GROUP, Batch, Embeddings, HeldItem, ItemRows, LoadedExample, Ragged, Sides, Targets


class Collator:
    """Makes batches. `num_hard_negatives` of each row are used (None: all), drawn per epoch."""

    def __init__(self, *, num_hard_negatives: int | None = None, seed: int = 0) -> None:
        self._num_hard_negatives = num_hard_negatives
        self._seed = seed

    def __call__(self, examples: Sequence[LoadedExample], epoch: int = 0) -> Batch:
        """The batch of `examples`. Raises DataError when there are none, or a row's negative equals its positive."""
        if not examples:
            raise DataError("a batch needs at least one row")
        chosen = [self._choose(example, epoch) for example in examples]
        documents = _DistinctDocuments()
        positives = [[documents.column(item, _group(row)) for item in row.positives] for row in chosen]
        negatives = [[documents.column(item, NO_GROUP) for item in row.negatives] for row in chosen]
        columns = [
            [*of_positives, *of_negatives] for of_positives, of_negatives in zip(positives, negatives, strict=True)
        ]
        scored = [of_row[: len(row.scores)] for of_row, row in zip(columns, chosen, strict=True)]
        for row, of_negatives in zip(chosen, negatives, strict=True):
            if row.query_image is not None and not _is_positive(row.query_image, row):
                of_negatives.append(documents.column(row.query_image, NO_GROUP))
        return Batch(
            queries=ItemRows(tuple(row.query for row in chosen), "query"),
            documents=ItemRows(tuple(documents.items), "document"),
            targets=replace(
                _targets(chosen, documents, positives, negatives),
                ignored=_optional_ragged([row.ignored for row in chosen]),
                scored=_optional_ragged(scored),
                scores=_optional_ragged([row.scores for row in chosen], torch.float32),
                teacher=_teacher_embeddings(chosen, columns),
            ),
            origins=tuple(row.origin for row in chosen),
        )

    def _choose(self, example: LoadedExample, epoch: int) -> LoadedExample:
        """The row with the negatives of this epoch; a loader that chose them before decoding chose the same."""
        check_negatives(example)
        return with_chosen_negatives(example, self._num_hard_negatives, seed=self._seed, epoch=epoch)


@dataclass
class _DistinctDocuments:
    """The distinct documents so far and the groups that each is a positive of."""

    items: list[HeldItem] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)
    _columns: dict[tuple[int, int], int] = field(default_factory=dict)

    def column(self, item: HeldItem, group: int) -> int:
        """The column of the document, a new one if its content and draw are new."""
        key = (item.content_hash, item.draw)
        if key not in self._columns:
            self._columns[key] = len(self.items)
            self.items.append(item)
            self.groups.append([])
        column = self._columns[key]
        if group != NO_GROUP and group not in self.groups[column]:
            self.groups[column].append(group)
        return column


def _targets(
    examples: Sequence[LoadedExample],
    documents: _DistinctDocuments,
    positives: list[list[int]],
    negatives: list[list[int]],
) -> Targets:
    _add_shared_positives(examples, documents, positives, negatives)
    return Targets(
        query_groups=_int64([_group(row) for row in examples]),
        query_hashes=_int64([row.query.content_hash for row in examples]),
        document_groups=_int64([groups[0] if groups else NO_GROUP for groups in documents.groups]),
        document_hashes=_int64([item.content_hash for item in documents.items]),
        positives=_distinct_columns(positives),
        negatives=_distinct_columns(negatives),
        document_draws=_int64([item.draw for item in documents.items]),
    )


def _add_shared_positives(
    examples: Sequence[LoadedExample],
    documents: _DistinctDocuments,
    positives: list[list[int]],
    negatives: list[list[int]],
) -> None:
    """Add documents of several groups to the positives of all rows of these groups: a column can name one group only.

    To those of all groups, so that it does not matter which row, or which rank, comes first.
    """
    shared = [(column, groups) for column, groups in enumerate(documents.groups) if len(groups) > 1]
    for column, groups in shared:
        for row, example in enumerate(examples):
            if _group(example) in groups and column not in negatives[row]:
                positives[row].append(column)


def _teacher_embeddings(rows: Sequence[LoadedExample], columns: Sequence[Sequence[int]]) -> Sides | None:
    """The teacher's embeddings that rows bring, in the batch's order, or None if they bring none."""
    embeddings = [row.embeddings for row in rows if row.embeddings is not None]
    if len(embeddings) < len(rows):
        return None
    sides = stack_embeddings(embeddings, columns, [row.origin for row in rows])
    return Sides(*(Embeddings(torch.from_numpy(side)) for side in sides))


def _is_positive(item: HeldItem, row: LoadedExample) -> bool:
    """True if the row names the item's content as a positive."""
    return item.content_hash in {positive.content_hash for positive in row.positives}


def _group(example: LoadedExample) -> int:
    return NO_GROUP if example.group is None else example.group


def _int64(values: Sequence[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _optional_ragged(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.int64) -> Ragged | None:
    """The values of each row in their order, or None when no row has any."""
    if not any(rows):
        return None
    return Ragged(
        torch.tensor([value for row in rows for value in row], dtype=dtype), _int64([len(row) for row in rows])
    )


def _distinct_columns(columns: Sequence[Sequence[int]]) -> Ragged:
    """The distinct columns of each row, ascending."""
    distinct = [sorted(set(row)) for row in columns]
    return Ragged(_int64([column for row in distinct for column in row]), _int64([len(row) for row in distinct]))
