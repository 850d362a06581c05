"""Triplet: a query's positive must score higher than its negatives by a margin.

For a query q, a positive p and a negative n, with scores s as the scorer gives them (no temperature),

    loss(q, p, n) = max(0, margin - s_qp + s_qn),  or  log(1 + exp(s_qn - s_qp))  with soft_margin

averaged over the triplets that `triplet_mining` picks:

    batch_all        every positive with every negative; the mean is over the triplets that cost something
    batch_hard       a query's lowest positive with its highest negative
    batch_semi_hard  each positive with the highest negative below it, else with the lowest negative
    explicit         each positive with the negatives that its row names

For unit vectors this is the triplet loss on cosine distance. Schroff, Kalenichenko and Philbin 2015 (FaceNet;
semi-hard), https://arxiv.org/abs/1503.03832; Hermans, Beyer and Leibe 2017 (all, hard, soft margin),
https://arxiv.org/abs/1703.07737.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vembed.losses.masks import Masks, mask_strips
from vembed.losses.objective import ScoreView
from vembed.losses.settings import TripletSettings
from vembed.losses.strips import sum_over_strips
from vembed.types import Targets

Cost = Callable[[Tensor], Tensor]  # how much higher a negative scores than the positive -> the loss
SumAndCount = tuple[Tensor, Tensor]


def triplet(view: ScoreView, targets: Targets, settings: TripletSettings) -> Tensor:
    """The loss, a scalar; 0 without any triplet."""
    cost: Cost = functional.softplus if settings.soft_margin else partial(_hinge, margin=settings.margin)
    mined = partial(_MINING[settings.triplet_mining], cost=cost)
    total, count = sum_over_strips(view.unscaled(), partial(mask_strips, targets), mined)
    return total / count.clamp(min=1)


def _hinge(excess: Tensor, margin: float) -> Tensor:
    return functional.relu(margin + excess)


def _batch_hard(scores: Tensor, masks: Masks, cost: Cost) -> SumAndCount:
    positive, negative = masks.positive, masks.negative
    rows = positive.any(dim=1) & negative.any(dim=1)
    lowest = scores[rows].masked_fill(~positive[rows], float("inf")).amin(dim=1)
    highest = scores[rows].masked_fill(~negative[rows], float("-inf")).amax(dim=1)
    return cost(highest - lowest).sum(), rows.sum()


def _batch_all(scores: Tensor, masks: Masks, cost: Cost) -> SumAndCount:
    return _over_pairs(scores, masks.positive, masks.negative, partial(_costly_triplets, cost=cost))


def _batch_semi_hard(scores: Tensor, masks: Masks, cost: Cost) -> SumAndCount:
    return _over_pairs(scores, masks.positive, masks.negative, partial(_semi_hard_triplets, cost=cost))


def _explicit(scores: Tensor, masks: Masks, cost: Cost) -> SumAndCount:
    return _over_pairs(scores, masks.positive, masks.explicit, partial(_every_triplet, cost=cost))


def _costly_triplets(positives: Tensor, others: Tensor, negative: Tensor, cost: Cost) -> SumAndCount:
    costs = cost(others - positives[:, None]).masked_fill(~negative, 0)
    return costs.sum(), (costs > 0).sum()


def _every_triplet(positives: Tensor, others: Tensor, negative: Tensor, cost: Cost) -> SumAndCount:
    return cost(others - positives[:, None]).masked_fill(~negative, 0).sum(), negative.sum()


def _semi_hard_triplets(positives: Tensor, others: Tensor, negative: Tensor, cost: Cost) -> SumAndCount:
    below = negative & (others < positives[:, None])
    highest_below = others.masked_fill(~below, float("-inf")).amax(dim=1)
    lowest = others.masked_fill(~negative, float("inf")).amin(dim=1)
    some = negative.any(dim=1)
    chosen = torch.where(below.any(dim=1), highest_below, lowest)
    return cost(chosen[some] - positives[some]).sum(), some.sum()


def _over_pairs(
    scores: Tensor, positive: Tensor, negative: Tensor, function: Callable[[Tensor, Tensor, Tensor], SumAndCount]
) -> SumAndCount:
    """The sums of function(scores of positive pairs [pairs], their rows' scores and negatives [pairs, documents]).

    As many pairs at once as there are rows; what a part needs for its gradient is made anew.
    """
    rows, columns = positive.nonzero(as_tuple=True)
    total, count = scores.new_zeros(()), scores.new_zeros(())
    for some, others in zip(torch.split(rows, len(scores)), torch.split(columns, len(scores)), strict=True):

        def part(scores: Tensor, some: Tensor = some, others: Tensor = others) -> SumAndCount:
            return function(scores[some, others], scores[some], negative[some])

        alone = len(rows) <= len(scores)
        added, counted = part(scores) if alone else checkpoint(part, scores, use_reentrant=False)
        total, count = total + added, count + counted
    return total, count


_MINING: dict[str, Callable[..., SumAndCount]] = {
    "batch_all": _batch_all,
    "batch_hard": _batch_hard,
    "batch_semi_hard": _batch_semi_hard,
    "explicit": _explicit,
}
