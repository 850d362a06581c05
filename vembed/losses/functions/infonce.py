"""InfoNCE: each query picks its documents out of the batch, each document its queries, or both.

For an anchor a with positives P and negatives N, and scaled scores s,

    loss(a) = mean over p in P of  -log( exp(s_ap) / (exp(s_ap) + sum over n in N of exp(s_an)) )

so the other positives stand in no denominator. The loss is the mean over anchors: all queries in one direction, and
in the other all documents that are a positive of some query (hard negatives only ever contrast).
van den Oord, Li and Vinyals 2018, https://arxiv.org/abs/1807.03748; both directions as in CLIP,
https://arxiv.org/abs/2103.00020.

Options add to N or take from it:

    query_to_query, document_to_document   other rows of the anchor's own side join N (Li et al. 2023, GTE,
                                           https://arxiv.org/abs/2308.03281; with joint_denominator as there: one N of
                                           a query and its document for both directions)
    false_negative_margin                  documents that score nearly as well as the query's best positive leave N
                                           (as in Solatorio 2024, https://arxiv.org/abs/2402.16829, with the model as
                                           its own guide); explicit negatives stay
    hardness_strength                      h > 0 weighs a negative of score c, before temperature, by exp(h c)
                                           (Robinson et al. 2021, https://arxiv.org/abs/2010.04592)
    label_smoothing                        a share of the target is spread evenly over the positive and N
"""

from functools import partial

import torch
from torch import Tensor

from vembed.losses.contrasts import Against, Candidates, Choose, Contrasts, all_negatives, contrasts
from vembed.losses.masks import Masks, MaskStrips, document_mask_strips, mask_strips, query_mask_strips
from vembed.losses.objective import ScoreView
from vembed.losses.settings import InfoNCESettings
from vembed.losses.softmax import mean_over_anchors, pair_losses
from vembed.types import Targets


def infonce(view: ScoreView, targets: Targets, settings: InfoNCESettings) -> Tensor:
    """The loss in the direction of `settings.loss_direction`, a scalar; `both` is the mean of the two.

    A query's explicit negatives join the batch's other documents, and the document that is an explicit negative has
    that query among its negatives.
    """
    smoothing = settings.label_smoothing
    found = contrasts(
        view,
        partial(mask_strips, targets, private_negatives=settings.private_negatives),
        _candidates(settings),
        columns=settings.loss_direction != "query_to_document",
        totals=smoothing > 0,
    )
    by_query, by_document = found.by_query, found.by_document
    if settings.query_to_query:
        by_query += _among(view.among_queries(), partial(query_mask_strips, targets), totals=smoothing > 0)
    if settings.document_to_document:
        by_document += _among(view.among_documents(), partial(document_mask_strips, targets), totals=smoothing > 0)
    if settings.joint_denominator:
        against = by_query.at(found.queries) + by_document.at(found.documents)
        losses = pair_losses(found.scores, against, smoothing)
        return mean_over_anchors(losses, found.queries, len(by_query.log_sum))
    picked = _side(found, found.queries, by_query, smoothing)
    picking = _side(found, found.documents, by_document, smoothing)
    return {"query_to_document": picked, "document_to_query": picking, "both": (picked + picking) / 2}[
        settings.loss_direction
    ]


def _side(found: Contrasts, anchors: Tensor, against: Against, label_smoothing: float) -> Tensor:
    """The mean over one side's anchors; anchors: int64 [pairs]."""
    losses = pair_losses(found.scores, against.at(anchors), label_smoothing)
    return mean_over_anchors(losses, anchors, len(against.log_sum))


def _among(view: ScoreView, masks: MaskStrips, *, totals: bool) -> Against:
    """What stands against each row of a side among its own."""
    return contrasts(view, masks, columns=False, totals=totals).by_query


def _candidates(settings: InfoNCESettings) -> Choose:
    """Which negatives take part, and how much they weigh."""
    return partial(_choose, settings=settings) if _filters(settings) or settings.hardness_strength else all_negatives


def _filters(settings: InfoNCESettings) -> bool:
    return settings.false_negative_margin is not None or settings.false_negative_relative_margin is not None


def _choose(scores: Tensor, masks: Masks, settings: InfoNCESettings) -> Candidates:
    negative = masks.negative
    if _filters(settings):
        negative &= (scores <= _highest_negative(scores, masks.positive, settings)) | masks.explicit
    if settings.hardness_strength is None:
        return Candidates(negative)
    weighed = {"all": negative, "explicit": masks.explicit, "in_batch": negative & ~masks.explicit}
    return Candidates(negative, settings.hardness_strength * scores * weighed[settings.hardness_on])


def _highest_negative(scores: Tensor, positive: Tensor, settings: InfoNCESettings) -> Tensor:
    """What a negative may score at most beside the query's best positive, [rows, 1]; no limit without a positive."""
    some = positive.any(dim=1, keepdim=True)
    best = scores.masked_fill(~positive, float("-inf")).amax(dim=1, keepdim=True).masked_fill(~some, 0)
    limits = []
    if settings.false_negative_margin is not None:
        limits.append(best - settings.false_negative_margin)
    if settings.false_negative_relative_margin is not None:
        limits.append(best - settings.false_negative_relative_margin * best.abs())
    return torch.stack(limits).amin(dim=0).masked_fill(~some, float("inf"))
