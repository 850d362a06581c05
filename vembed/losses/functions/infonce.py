"""InfoNCE: each query picks its documents out of the batch, each document its queries, or both.

For an anchor a with positives P and negatives N, and scaled scores s,

    loss(a) = mean over p in P of  -log( exp(s_ap) / (exp(s_ap) + sum over n in N of exp(s_an)) )

so the other positives stand in no denominator. The loss is the mean over anchors: all queries in one direction, and
in the other all documents that are a positive of some query (hard negatives only ever contrast).
van den Oord, Li and Vinyals 2018, https://arxiv.org/abs/1807.03748; both directions as in CLIP,
https://arxiv.org/abs/2103.00020.
"""

import torch
from torch import Tensor
from torch.nn import functional

from vembed.losses.masks import dense_masks
from vembed.losses.objective import ScoreView
from vembed.losses.settings import InfoNCESettings
from vembed.types import Targets


def infonce(view: ScoreView, targets: Targets, settings: InfoNCESettings) -> Tensor:
    """The loss in the direction of `settings.loss_direction`, a scalar; `both` is the mean of the two.

    A query's explicit negatives join the batch's other documents, and the document that is an explicit negative has
    that query among its negatives.
    """
    scores = view.dense()
    masks = dense_masks(targets)
    positive, negative = masks.positive, masks.negative
    if settings.loss_direction == "query_to_document":
        return contrast(scores, positive, negative)
    if settings.loss_direction == "document_to_query":
        return contrast(scores.T, positive.T, negative.T)
    return (contrast(scores, positive, negative) + contrast(scores.T, positive.T, negative.T)) / 2


def contrast(scores: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Mean over the anchors that have a positive, a scalar. All three are [anchors, others], the masks bool.

    >>> scores = torch.tensor([[1.0, 1.0]])
    >>> contrast(scores, torch.tensor([[True, False]]), torch.tensor([[False, True]]))  # log 2
    tensor(0.6931)
    """
    anchors, others = positive.nonzero(as_tuple=True)  # [pairs]
    against = _log_sum_of_negatives(scores, negative)[anchors]
    contrasted = negative.any(dim=1)[anchors]
    losses = torch.where(contrasted, -functional.logsigmoid(scores[anchors, others] - against), 0)
    num_positives = positive.sum(dim=1)
    return (losses / num_positives[anchors]).sum() / (num_positives > 0).sum()


def _log_sum_of_negatives(scores: Tensor, negative: Tensor) -> Tensor:
    """log of the sum of exp over an anchor's negatives, [anchors]; without any: a finite value without gradient."""
    kept = scores.masked_fill(~negative, float("-inf"))
    return kept.masked_fill(~negative.any(dim=1, keepdim=True), 0).logsumexp(dim=1)
