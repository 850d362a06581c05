"""MarginMSE: a query's positive must lead its negatives by as much as the scores in the data (a teacher's) say.

    loss = mean over (q, p, n) of  ( (s_qp - s_qn) - (t_qp - t_qn) )^2

with scaled scores s, so that a learned temperature finds the teacher's range, and the row's scores t of its positives
and negatives. Hofstaetter et al. 2020, https://arxiv.org/abs/2010.02666.
"""

import torch
from torch import Tensor

from vembed.losses.graded import GradedPairs, graded_pairs
from vembed.losses.objective import ScoreView
from vembed.losses.settings import MarginMSESettings
from vembed.types import Targets


def margin_mse(view: ScoreView, targets: Targets, settings: MarginMSESettings) -> Tensor:
    """The loss, a scalar."""
    pairs = graded_pairs(targets, "loss_type margin_mse")
    scores = view.pairs(pairs.queries, pairs.documents)
    return mean_square_of_margins(scores - pairs.grades.to(scores.dtype), pairs)


def mean_square_of_margins(excess: Tensor, pairs: GradedPairs) -> Tensor:
    """The formula, a scalar, from what each score is above the teacher's, [pairs]."""
    positives, negatives = pairs.is_negative.logical_not().nonzero().squeeze(1), pairs.is_negative.nonzero().squeeze(1)
    positives, negatives = _together(positives, negatives, pairs.queries)
    return (excess[positives] - excess[negatives]).square().sum() / max(1, len(positives))


def _together(positives: Tensor, negatives: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Every positive with every negative of its query: int64 [triplets] twice. queries: [pairs], ascending."""
    length = int(queries.max()) + 1 if len(queries) else 0
    num_negatives = torch.bincount(queries[negatives], minlength=length)
    first = num_negatives.cumsum(0) - num_negatives
    repeats = num_negatives[queries[positives]]
    repeated = positives.repeat_interleave(repeats)
    steps = torch.arange(len(repeated), device=queries.device) - (repeats.cumsum(0) - repeats).repeat_interleave(
        repeats
    )
    return repeated, negatives[first[queries[repeated]] + steps]
