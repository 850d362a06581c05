"""MarginMSE: a query's positive must lead its negatives by as much as the scores in the data (a teacher's) say.

    loss = mean over (q, p, n) of  ( (s_qp - s_qn) - (t_qp - t_qn) )^2

with scaled scores s, so that a learned temperature finds the teacher's range, and the row's scores t of its positives
and negatives. Hofstaetter et al. 2020, https://arxiv.org/abs/2010.02666.
"""

import torch
from torch import Tensor

from vembed.losses.graded_pairs import GradedPairs, graded_pairs
from vembed.losses.objective import ScoreView
from vembed.losses.settings import MarginMSESettings
from vembed.types import Ragged, Targets
from vembed.utils.ragged import pairs_within_rows


def margin_mse(view: ScoreView, targets: Targets, settings: MarginMSESettings) -> Tensor:
    """The loss, a scalar."""
    pairs = graded_pairs(targets, "loss_type margin_mse")
    scores = view.pairs(pairs.queries, pairs.documents)
    return mean_square_of_margins(scores - pairs.grades.to(scores.dtype), pairs)


def mean_square_of_margins(excess: Tensor, pairs: GradedPairs) -> Tensor:
    """The formula, a scalar, from what each score is above the teacher's, [pairs]."""
    positives, negatives = (_chosen_by_query(kind, pairs.queries) for kind in (~pairs.is_negative, pairs.is_negative))
    first, second = pairs_within_rows(positives, negatives)
    errors = excess[positives.values[first]] - excess[negatives.values[second]]  # of margins, [triplets]
    return errors.square().sum() / max(1, len(errors))


def _chosen_by_query(chosen: Tensor, queries: Tensor) -> Ragged:
    """The numbers of the chosen pairs, row by row the query's. chosen: bool [pairs]; queries: [pairs], ascending."""
    num_queries = int(queries[-1]) + 1 if len(queries) else 0
    return Ragged(chosen.nonzero().squeeze(1), torch.bincount(queries[chosen], minlength=num_queries))
