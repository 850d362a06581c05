"""The pairs to which the rows of a batch give a score."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.errors import DataError
from vembed.types import Targets
from vembed.utils.ragged import cell_numbers, row_numbers


@dataclass(frozen=True)
class GradedPairs:
    """Query and document numbers (int64), grades (float) and whether the row names the document as a negative (bool).

    Each [pairs], in order of queries.
    """

    queries: Tensor
    documents: Tensor
    grades: Tensor
    is_negative: Tensor


def graded_pairs(targets: Targets, reader: str) -> GradedPairs:
    """The pairs with a score. Raises DataError, naming what reads them, when the batch has none."""
    scored, scores = targets.scored, targets.scores
    if scored is None or scores is None or len(scored.values) == 0:
        raise DataError(f"{reader} compares with scores; rows need a `score` (column_mapping tells where)")
    num_documents = len(targets.document_hashes)
    is_negative = torch.isin(cell_numbers(scored, num_documents), cell_numbers(targets.negatives, num_documents))
    return GradedPairs(row_numbers(scored), scored.values, scores.values, is_negative)
