"""The items of a batch that are examples of classes, and their scores against the weights of those.

Every query is an example of its row's class (`group`), and so is every document that the row names as positive;
documents that are only negatives are examples of none. Items are told apart by content: one that stands several times
in a batch, as query and as document or with several augmentations, shares the weight of one among all of its places. An
item that rows of several classes hold is an example of each, and stands against none of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.errors import DataError
from vembed.losses.class_weights import ClassCentres
from vembed.losses.masks import Masks, MaskStrips
from vembed.losses.objective import ScoreView
from vembed.scoring import at_least_float32, cosine
from vembed.types import NO_GROUP, Embeddings, Targets
from vembed.utils.ragged import row_numbers


@dataclass(frozen=True)
class ClassExamples:
    """The items of a batch that are examples of a class, by their places among queries and documents.

    vectors: [examples, dim], at least float32. weights: [examples], those of an item add up to 1. items: int64
    [examples], the number of the item that stands there. labels: int64 [labels] twice, the numbers of items and of
    classes that they are examples of, each pair once.
    """

    vectors: Tensor
    weights: Tensor
    items: Tensor
    labels: tuple[Tensor, Tensor]

    @property
    def num_items(self) -> int:
        """Different contents."""
        return int(self.items.max()) + 1 if len(self.items) else 0


def class_examples(
    queries: Embeddings, documents: Embeddings, targets: Targets, centres: ClassCentres
) -> ClassExamples:
    """The examples of a batch. Raises DataError for a group that is no class."""
    rows = (targets.query_groups != NO_GROUP).nonzero().squeeze(1)
    columns, column_groups = _labelled_documents(targets)
    places = torch.unique(columns)
    hashes = torch.cat([targets.query_hashes[rows], targets.document_hashes[places]])
    contents, items, counts = torch.unique(hashes, return_inverse=True, return_counts=True)
    owners = torch.cat([targets.query_hashes[rows], targets.document_hashes[columns]])
    classes = _class_numbers(torch.cat([targets.query_groups[rows], column_groups]), centres)
    labels = torch.unique(torch.stack([torch.searchsorted(contents, owners), classes]), dim=1)
    vectors = torch.cat([at_least_float32(queries.vectors[rows]), at_least_float32(documents.vectors[places])])
    return ClassExamples(vectors, counts[items].to(vectors.dtype).reciprocal(), items, (labels[0], labels[1]))


def cosine_view(rows: Tensor, columns: Tensor) -> ScoreView:
    """The cosines of vectors [rows, dim] and [columns, dim], in the wider dtype of the two and at least float32."""
    dtype = torch.promote_types(rows.dtype, columns.dtype)
    one = at_least_float32(torch.ones(1, dtype=dtype, device=rows.device))
    left, right = (Embeddings(side.to(one.dtype)) for side in (rows, columns))
    return ScoreView(left, right, cosine, scale=one)


def example_mask_strips(examples: ClassExamples, num_classes: int) -> MaskStrips:
    """Masks [examples, classes]: an example's classes are its positives, all others its negatives."""
    return _label_strips(examples.items, examples.labels, num_classes)


def class_mask_strips(examples: ClassExamples, num_classes: int) -> MaskStrips:
    """Masks [classes, examples]: the examples of a class are its positives, all others its negatives."""
    items, classes = examples.labels
    every = torch.arange(num_classes, device=items.device)

    def strips(rows: int) -> Iterator[Masks]:
        for masks in _label_strips(every, (classes, items), examples.num_items)(rows):
            positive = masks.positive.index_select(1, examples.items)
            yield Masks(positive, torch.ones_like(positive), torch.zeros_like(positive), masks.start)

    return strips


def _label_strips(owners: Tensor, labels: tuple[Tensor, Tensor], num_columns: int) -> MaskStrips:
    """Masks [owners, columns]: True where a label has the owner's number first and the column's second."""

    def strips(rows: int) -> Iterator[Masks]:
        for start in range(0, max(len(owners), 1), rows):
            named = owners[start : start + rows, None] == labels[0]  # [strip, labels]
            counts = named.new_zeros(len(named), num_columns, dtype=torch.int32)
            positive = counts.index_add_(1, labels[1], named.int()) > 0
            yield Masks(positive, torch.ones_like(positive), torch.zeros_like(positive), start)

    return strips


def _labelled_documents(targets: Targets) -> tuple[Tensor, Tensor]:
    """Int64 [pairs] twice: the positives of all rows that have a group, and that group."""
    groups = targets.query_groups[row_numbers(targets.positives)]
    grouped = groups != NO_GROUP
    return targets.positives.values[grouped], groups[grouped]


def _class_numbers(groups: Tensor, centres: ClassCentres) -> Tensor:
    """Int64 [groups]: the number of each group's class."""
    numbers = torch.searchsorted(centres.keys, groups).clamp(max=len(centres.keys) - 1)
    unknown = centres.keys[numbers] != groups
    if bool(unknown.any()):
        raise DataError(
            f"the batch has a group (key {int(groups[unknown][0])}) that is none of the {len(centres.keys)} classes"
            " that the loss was made for"
        )
    return numbers
