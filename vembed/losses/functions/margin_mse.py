"""MarginMSE: a query's positive must lead its negatives by as much as the scores in the data (a teacher's) say.

    loss = mean over (q, p, n) of  ( (s_qp - s_qn) - (t_qp - t_qn) )^2

with scaled scores s, so that a learned temperature finds the teacher's range, and the row's scores t of its positives
and negatives. Hofstaetter et al. 2020, https://arxiv.org/abs/2010.02666.
"""

import torch
from torch import Tensor

from vembed.losses.explicit_triplets import every_two
from vembed.losses.graded_pairs import GradedPairs, graded_pairs
from vembed.losses.objective import ScoreView
from vembed.losses.settings import MarginMSESettings
from vembed.types import Ragged, Targets


def margin_mse(view: ScoreView, targets: Targets, settings: MarginMSESettings) -> Tensor:
    """The loss, a scalar."""
    pairs = graded_pairs(targets, "loss_type margin_mse")
    scores = view.pairs(pairs.queries, pairs.documents)
    return mean_square_of_margins(scores - pairs.grades.to(scores.dtype), pairs)


def mean_square_of_margins(excess: Tensor, pairs: GradedPairs) -> Tensor:
    """The formula, a scalar, from what each score is above the teacher's, [pairs]."""
    positives, negatives = _of_rows(~pairs.is_negative, pairs.queries), _of_rows(pairs.is_negative, pairs.queries)
    first, second = every_two(positives, negatives)
    leads = excess[positives.values[first]] - excess[negatives.values[second]]
    return leads.square().sum() / max(1, len(leads))


def _of_rows(chosen: Tensor, queries: Tensor) -> Ragged:
    """The numbers of the chosen pairs, by query. chosen: bool [pairs]; queries: [pairs], ascending."""
    num_queries = int(queries[-1]) + 1 if len(queries) else 0
    return Ragged(chosen.nonzero().squeeze(1), torch.bincount(queries[chosen], minlength=num_queries))
