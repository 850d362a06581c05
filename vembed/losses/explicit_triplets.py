"""The triplets that rows spell out: a query, a document named as its positive and one named as its negative."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.types import Ragged, Targets
from vembed.utils.ragged import cell_numbers, pairs_within_rows, row_numbers


@dataclass(frozen=True)
class Triplets:
    """Numbers of a query, a document that its row names as positive, and one that it names as negative.

    int64 [triplets] each, in order of queries.
    """

    queries: Tensor
    positives: Tensor
    negatives: Tensor


def explicit_triplets(targets: Targets) -> Triplets:
    """Every positive of a row with every negative of it; a document that it names as both is a positive.

    >>> columns, one = torch.tensor([0, 1, 2]), torch.tensor([3])
    >>> none = torch.tensor([-1, -1, -1])
    >>> targets = Targets(
    ...     none[:1], none[:1], none, none, Ragged(columns[:1], columns[1:2]), Ragged(columns[1:], columns[2:])
    ... )
    >>> explicit_triplets(targets)
    Triplets(queries=tensor([0, 0]), positives=tensor([0, 0]), negatives=tensor([1, 2]))
    """
    positives, negatives = targets.positives, _without(targets.negatives, targets.positives, targets)
    first, second = pairs_within_rows(positives, negatives)
    return Triplets(row_numbers(positives)[first], positives.values[first], negatives.values[second])


def _without(columns: Ragged, others: Ragged, targets: Targets) -> Ragged:
    """The columns that a row does not also name in `others`."""
    num_documents = len(targets.document_hashes)
    kept = ~torch.isin(cell_numbers(columns, num_documents), cell_numbers(others, num_documents))
    counts = torch.bincount(row_numbers(columns)[kept], minlength=len(columns.counts))
    return Ragged(columns.values[kept], counts)
