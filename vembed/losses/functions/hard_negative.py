"""Hard negatives of the batch: InfoNCE of each query against its k highest-scoring negatives alone.

    loss(q) = mean over p in P of  -log( exp(s_qp) / (exp(s_qp) + sum over the k largest of N of exp(s_qn)) )

averaged over queries. Explicit negatives compete with those of the batch. Online hard example mining as in Shrivastava,
Gupta and Girshick 2016, https://arxiv.org/abs/1604.03540; for retrieval see Xiong et al. 2021 (ANCE),
https://arxiv.org/abs/2007.00808.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vembed.losses.contrasts import NOTHING
from vembed.losses.masks import Masks, mask_strips
from vembed.losses.objective import ScoreView
from vembed.losses.settings import HardNegativeSettings
from vembed.losses.strips import sum_over_strips
from vembed.types import Targets


def hard_negative(view: ScoreView, targets: Targets, settings: HardNegativeSettings) -> Tensor:
    """The loss, a scalar."""
    query_losses = partial(_query_losses, num_hardest=settings.num_hardest)
    total, num_queries = sum_over_strips(view, partial(mask_strips, targets), query_losses)
    return total / num_queries.clamp(min=1)


def _query_losses(scores: Tensor, masks: Masks, num_hardest: int) -> tuple[Tensor, Tensor]:
    """The sum of the losses of the rows that have a positive, and the number of those rows."""
    rows, documents = masks.positive.nonzero(as_tuple=True)
    num_positives = masks.positive.sum(dim=1)
    excess = scores[rows, documents] - _log_sum_of_hardest(scores, masks.negative, num_hardest)[rows]
    losses = -functional.logsigmoid(excess) / num_positives[rows]
    return losses.sum(), (num_positives > 0).sum().to(scores.dtype)


def _log_sum_of_hardest(scores: Tensor, negative: Tensor, num_hardest: int) -> Tensor:
    """Log of the sum of exp of each row's `num_hardest` highest negatives, of equal scores any; [rows]."""
    some = negative.any(dim=1)
    highest = scores.masked_fill(~negative, float("-inf")).topk(min(num_hardest, scores.shape[1]), dim=1).values
    return torch.where(some, highest.masked_fill(~some[:, None], 0).logsumexp(dim=1), NOTHING)
