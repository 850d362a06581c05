"""Hard negatives of the batch: InfoNCE of each query against its k highest-scoring negatives alone.

    loss(q) = mean over p in P of  -log( exp(s_qp) / (exp(s_qp) + sum over the k largest of N of exp(s_qn)) )

averaged over queries. Explicit negatives compete with those of the batch. Online hard example mining as in Shrivastava,
Gupta and Girshick 2016, https://arxiv.org/abs/1604.03540; for retrieval see Xiong et al. 2021 (ANCE),
https://arxiv.org/abs/2007.00808.
"""

from functools import partial

import torch
from torch import Tensor

from vembed.losses.contrasts import Candidates, contrasts
from vembed.losses.masks import Masks, mask_strips
from vembed.losses.objective import ScoreView
from vembed.losses.settings import HardNegativeSettings
from vembed.losses.softmax import Anchors, pair_losses, sum_over_pairs
from vembed.types import Targets


def hard_negative(view: ScoreView, targets: Targets, settings: HardNegativeSettings) -> Tensor:
    """The loss, a scalar."""
    choose = partial(_hardest, number=settings.num_hardest)
    found = contrasts(view, partial(mask_strips, targets), choose, columns=False)
    return sum_over_pairs(found, _losses, found.by_query, found.by_document)


def _losses(scores: Tensor, query: Anchors, _document: Anchors) -> Tensor:
    """The weighted losses of pairs with these scores."""
    return query.weight * pair_losses(scores, query.against)


def _hardest(scores: Tensor, masks: Masks, number: int) -> Candidates:
    """Each row's `number` highest negatives; of equal scores any."""
    negative = masks.negative
    kept = scores.masked_fill(~negative, float("-inf"))
    highest = kept.topk(min(number, kept.shape[1]), dim=1).indices
    return Candidates(torch.zeros_like(negative).scatter_(1, highest, True) & negative)
