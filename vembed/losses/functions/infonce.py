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
    false_negative_teacher_margin          the same by a teacher's scores, before its temperature (as there)
    hardness_strength                      h > 0 weighs a negative of score c, before temperature, by exp(h c)
                                           (Robinson et al. 2021, https://arxiv.org/abs/2010.04592)
    label_smoothing                        a share of the target is spread evenly over the positive and N
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vembed.losses.contrasts import Candidates, CandidateSums, Choose, all_negatives, contrasts
from vembed.losses.masks import Masks, MaskStrips, document_mask_strips, mask_strips, query_mask_strips
from vembed.losses.objective import ScoreView
from vembed.losses.settings import InfoNCESettings
from vembed.losses.softmax import Anchors, mean_over_directions, pair_losses, sum_over_pairs
from vembed.losses.strips import masked_real
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
        _candidates(view, targets, settings),
        columns=settings.loss_direction != "query_to_document",
        totals=smoothing > 0,
    )
    by_query, by_document = found.by_query, found.by_document
    if settings.query_to_query:
        by_query += _within_side(view.among_queries(), partial(query_mask_strips, targets), totals=smoothing > 0)
    if settings.document_to_document:
        by_document += _within_side(
            view.among_documents(), partial(document_mask_strips, targets), totals=smoothing > 0
        )
    return sum_over_pairs(found, partial(_losses, settings=settings), by_query, by_document)


def _losses(scores: Tensor, query: Anchors, document: Anchors, settings: InfoNCESettings) -> Tensor:
    """The weighted losses of pairs with these scores."""
    smoothing = settings.label_smoothing
    if settings.joint_denominator:
        return query.weight * pair_losses(scores, query.against + document.against, smoothing)
    return mean_over_directions(
        settings.loss_direction, query, document, lambda side: pair_losses(scores, side.against, smoothing)
    )


def _within_side(view: ScoreView, masks: MaskStrips, *, totals: bool) -> CandidateSums:
    """The sums over each row's negatives among the rows of its own side."""
    return contrasts(view, masks, columns=False, totals=totals).by_query


@dataclass(frozen=True)
class _FalseNegativeMargins:
    """By how much a negative must stay below the query's best positive: absolutely, and as a share of its score."""

    absolute: float | None
    relative: float | None

    @property
    def some(self) -> bool:
        return self.absolute is not None or self.relative is not None


def _candidates(view: ScoreView, targets: Targets, settings: InfoNCESettings) -> Choose:
    """The rule that chooses the negatives, and what is added to their scores to weigh them."""
    own = _FalseNegativeMargins(settings.false_negative_margin, settings.false_negative_relative_margin)
    of_teacher = _FalseNegativeMargins(
        settings.false_negative_teacher_margin, settings.false_negative_teacher_relative_margin
    )
    teacher = view.of_teacher(targets).unscaled() if of_teacher.some else None
    if not own.some and teacher is None and settings.hardness_strength is None:
        return all_negatives

    def choose(scores: Tensor, masks: Masks) -> Candidates:
        negative = masks.negative
        if own.some:
            negative &= _probably_negative(scores, masks, own)
        if teacher is not None:
            judged = teacher.rows(masks.start, masks.start + len(scores))
            negative &= _probably_negative(judged, masked_real(masks, teacher), of_teacher)
        return _weighted_candidates(scores, masks, negative, settings)

    return choose


def _weighted_candidates(scores: Tensor, masks: Masks, negative: Tensor, settings: InfoNCESettings) -> Candidates:
    if settings.hardness_strength is None:
        return Candidates(negative)
    weighed = {"all": negative, "explicit": masks.explicit, "in_batch": negative & ~masks.explicit}
    return Candidates(negative, settings.hardness_strength * scores * weighed[settings.hardness_on])


def _probably_negative(scores: Tensor, masks: Masks, margins: _FalseNegativeMargins) -> Tensor:
    """Bool [rows, documents]: explicit negatives, and what scores no more than a negative may; all that is not valid,
    about which the scores say nothing; in a row without a positive, all."""
    some = masks.positive.any(dim=1, keepdim=True)
    best = scores.masked_fill(~masks.positive, float("-inf")).amax(dim=1, keepdim=True).masked_fill(~some, 0)
    limits = []
    if margins.absolute is not None:
        limits.append(best - margins.absolute)
    if margins.relative is not None:
        limits.append(best - margins.relative * best.abs())
    highest = torch.stack(limits).amin(dim=0).masked_fill(~some, float("inf"))
    return (scores <= highest) | masks.explicit | ~masks.valid
