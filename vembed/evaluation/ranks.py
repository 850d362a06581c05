"""The exact rank of every relevant document of a query, however deep.

A document is ahead of a relevant one if it is not relevant itself and scores as much or more. "As much" allows for the
rounding of float32 (`TIE_TOLERANCE`). So equal scores never flatter: a model that gives every input the same vector
ranks all relevant documents last, and figures do not follow the rounding of one batch size or another. Relevant
documents among themselves stand in the order of their scores.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vembed.types import Ragged
from vembed.utils.ragged import row_numbers

# Of the largest score of the query. Float32 products of a few hundred terms differ by some 1e-7 with their order.
TIE_TOLERANCE = 2e-6


@dataclass(frozen=True)
class RelevantRanks:
    """Ranks from 1, ascending within each query. values: int64 [pairs]; counts: int64 [queries], the relevant ones."""

    values: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def queries(self) -> NDArray[np.int64]:
        """Int64 [pairs]: the query of each rank."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Int64 [pairs]: 1 for the query's first relevant document, 2 for the next, and so on."""
        starts = np.cumsum(self.counts) - self.counts
        return np.arange(len(self.values)) - np.repeat(starts, self.counts) + 1


def rank_relevant(scores: Tensor, relevant: Ragged) -> RelevantRanks:
    """Ranks of the relevant documents (numbers per query) by scores [queries, documents]; -inf is no document.

    >>> rank_relevant(torch.tensor([[0.9, 0.8, 0.7, 0.8]]), Ragged(torch.tensor([0, 1]), torch.tensor([2]))).values
    array([1, 3])
    """
    owners = row_numbers(relevant)
    tolerance = _tie_tolerance(scores)  # [queries]
    thresholds = _thresholds(scores[owners, relevant.values] - tolerance[owners], relevant)  # [queries, most relevant]
    others = scores.index_put((owners, relevant.values), scores.new_tensor(float("-inf")))
    reached = torch.searchsorted(thresholds, others, right=True)  # [queries, documents]: how many it is ahead of
    width = thresholds.shape[1] + 1
    cells = reached + width * torch.arange(len(scores), device=scores.device)[:, None]
    histogram = torch.bincount(cells.flatten(), minlength=width * len(scores)).view(len(scores), width)
    ahead = histogram.flip(1).cumsum(1).flip(1)[:, 1:]  # [queries, most relevant]
    behind = relevant.counts[:, None] - torch.arange(width - 1, device=scores.device)  # relevant ones not below it
    real = behind > 0
    ranks = torch.where(real, ahead + behind, torch.iinfo(torch.int64).max).sort(dim=1).values
    kept = torch.arange(width - 1, device=scores.device) < relevant.counts[:, None]
    return RelevantRanks(ranks[kept].cpu().numpy(), relevant.counts.cpu().numpy())


def join_ranks(parts: list[RelevantRanks]) -> RelevantRanks:
    """The ranks of several strips of queries, in order."""
    return RelevantRanks(np.concatenate([p.values for p in parts]), np.concatenate([p.counts for p in parts]))


def _tie_tolerance(scores: Tensor) -> Tensor:
    """The difference up to which two scores count as equal, [queries]."""
    finite = scores.masked_fill(scores == float("-inf"), 0)
    return TIE_TOLERANCE * finite.abs().amax(dim=1)


def _thresholds(values: Tensor, relevant: Ragged) -> Tensor:
    """Each query's values, ascending, in [queries, most relevant]; +inf fills up."""
    most = int(relevant.counts.max()) if len(relevant.counts) else 0
    columns = torch.arange(most, device=values.device)
    table = values.new_full((len(relevant.counts), most), float("inf"))
    table[columns < relevant.counts[:, None]] = values
    return table.sort(dim=1).values
