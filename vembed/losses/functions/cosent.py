"""CoSENT: whatever should score higher must, over all comparisons of the batch at once.

    loss = log( 1 + sum over pairs i, j where i should score higher than j of  exp(s_j - s_i) )

with scaled scores s. `cosent_pairs: graded` compares the (query, document) pairs to which rows give a `score`;
`in_batch` compares every positive pair of the batch with every negative one. Huang et al. 2024,
https://doi.org/10.1109/TASLP.2024.3402087; first described by Su 2022, https://kexue.fm/archives/8847.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vembed.losses.contrasts import NOTHING, Candidates, contrasts
from vembed.losses.graded_pairs import graded_pairs
from vembed.losses.masks import Masks, mask_strips
from vembed.losses.objective import ScoreView
from vembed.losses.settings import CoSENTSettings
from vembed.types import Targets


def cosent(view: ScoreView, targets: Targets, settings: CoSENTSettings) -> Tensor:
    """The loss, a scalar."""
    if settings.cosent_pairs == "graded":
        pairs = graded_pairs(targets, "loss_type cosent")
        return ranking_loss(view.pairs(pairs.queries, pairs.documents), pairs.grades)
    masks = partial(mask_strips, targets)
    found = contrasts(view, masks, columns=False)
    if found.pairs is not None:
        lowest = (-found.pairs.scores).logsumexp(dim=0) if len(found.pairs.scores) else view.scale.new_tensor(NOTHING)
    else:
        lowest = contrasts(_negated(view), masks, _positives, columns=False).by_query.log_sum.logsumexp(dim=0)
    return functional.softplus(found.by_query.log_sum.logsumexp(dim=0) + lowest)


def _negated(view: ScoreView) -> ScoreView:
    """All scores with the other sign."""
    return replace(view, scale=-view.scale, bias=None if view.bias is None else -view.bias)


def _positives(_scores: Tensor, masks: Masks) -> Candidates:
    return Candidates(masks.positive)


def ranking_loss(scores: Tensor, grades: Tensor) -> Tensor:
    """The formula over pairs with these scores and grades, [pairs] each.

    >>> ranking_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))  # log 2
    tensor(0.6931)
    """
    grades, order = grades.sort()
    scores = scores[order]
    up_to = scores.logcumsumexp(dim=0)  # log sum exp of the pairs with grades so far
    num_lower = torch.searchsorted(grades, grades)
    lower = torch.cat([scores.new_full((1,), NOTHING), up_to])[num_lower]
    return torch.cat([scores.new_zeros(1), lower - scores]).logsumexp(dim=0)
