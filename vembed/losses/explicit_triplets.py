"""The documents that rows name as positives and negatives, as numbers to index with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.types import Ragged, Targets


@dataclass(frozen=True)
class Triplets:
    """Numbers of a query, a document that its row names as positive, and one that it names as negative.

    int64 [triplets] each, in order of queries.
    """

    queries: Tensor
    positives: Tensor
    negatives: Tensor


def named_triplets(targets: Targets) -> Triplets:
    """Every positive of a row with every negative of it; a document that it names as both is a positive.

    >>> columns, one = torch.tensor([0, 1, 2]), torch.tensor([3])
    >>> none = torch.tensor([-1, -1, -1])
    >>> targets = Targets(
    ...     none[:1], none[:1], none, none, Ragged(columns[:1], columns[1:2]), Ragged(columns[1:], columns[2:])
    ... )
    >>> named_triplets(targets)
    Triplets(queries=tensor([0, 0]), positives=tensor([0, 0]), negatives=tensor([1, 2]))
    """
    positives, negatives = targets.positives, _without(targets.negatives, targets.positives, targets)
    first, second = every_two(positives, negatives)
    return Triplets(row_numbers(positives)[first], positives.values[first], negatives.values[second])


def row_numbers(ragged: Ragged) -> Tensor:
    """Int64 [slices]: the row that owns each slice."""
    rows = torch.arange(len(ragged.counts), device=ragged.counts.device)
    return rows.repeat_interleave(ragged.counts, output_size=len(ragged.values))


def every_two(first: Ragged, second: Ragged) -> tuple[Tensor, Tensor]:
    """Every slice of a row with every slice of the same row in `second`: their numbers, int64 [couples] twice.

    >>> three = Ragged(torch.tensor([7, 8, 9]), torch.tensor([1, 2]))
    >>> every_two(three, three)
    (tensor([0, 1, 1, 2, 2]), tensor([0, 1, 2, 1, 2]))
    """
    rows = row_numbers(first)
    repeats = second.counts[rows]
    couples = torch.arange(len(rows), device=rows.device).repeat_interleave(repeats)
    steps = torch.arange(len(couples), device=rows.device) - (repeats.cumsum(0) - repeats)[couples]
    return couples, (second.counts.cumsum(0) - second.counts)[rows[couples]] + steps


def _without(columns: Ragged, others: Ragged, targets: Targets) -> Ragged:
    """The columns that a row does not also name in `others`."""
    rows, num_documents = row_numbers(columns), len(targets.document_hashes)
    taken = row_numbers(others) * num_documents + others.values
    kept = ~torch.isin(rows * num_documents + columns.values, taken)
    return Ragged(columns.values[kept], torch.bincount(rows[kept], minlength=len(columns.counts)))
