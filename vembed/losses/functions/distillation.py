"""Distillation: a model learns what a teacher makes of the same queries and documents, beside any loss.

    total = (1 - alpha) * loss + alpha * term

With the student's scores s, over its temperature, and the teacher's t, over the teacher's own, the term is by type

    kl           mean over queries of  T^2 * sum over d of  p_d (log p_d - log q_d)
                 with p = softmax of t / T, q = softmax of s / T over the query's documents. Hinton, Vinyals and Dean
                 2015, https://arxiv.org/abs/1503.02531; of retrieval, Lin, Yang and Lin 2020,
                 https://arxiv.org/abs/2010.11386. T = 1 leaves both as they are; T^2 keeps the gradient's size
    mse          mean over q, d of  (s_qd - t_qd)^2
    margin_mse   mean over q, p, n of  ( (s_qp - s_qn) - (t_qp - t_qn) )^2, positives p, negatives n. Hofstaetter et al.
                 2020, https://arxiv.org/abs/2010.02666
    cosine       mean over both sides of the mean over rows of  1 - cosine(student's embedding, teacher's). As in
                 Reimers and Gurevych 2020, https://arxiv.org/abs/2004.09813, which has squared distances

Documents are those of the batch that are not ignored for the query, where there are embeddings of the teacher; its
scores are made from them strip by strip, and no bias is added to either side's. Without, the teacher is the scores in
the data, documents are those that the row gives one, and the student's scores have its bias, if it learns one.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vembed.errors import DataError
from vembed.losses.functions.margin_mse import mean_square_of_margins
from vembed.losses.graded_pairs import GradedPairs, graded_pairs
from vembed.losses.masks import Masks, mask_strips
from vembed.losses.objective import LossFunction, ScoreView
from vembed.losses.settings import LossSettings
from vembed.losses.softmax import grouped_logsumexp
from vembed.losses.strips import masked_real, sum_over_strips
from vembed.scoring import at_least_float32, l2_normalize
from vembed.types import Embeddings, Targets

# Scores of student and teacher [rows, documents], their masks, T -> the sum of what is averaged, and its number.
_StripTerm = Callable[[Tensor, Tensor, Masks, float], tuple[Tensor, Tensor]]
# The same of the pairs that have a stored score, [pairs] each -> the mean.
_PairTerm = Callable[[Tensor, Tensor, GradedPairs, float], Tensor]


def distilled(view: ScoreView, targets: Targets, loss: LossFunction, settings: LossSettings) -> Tensor:
    """The total, a scalar; with an alpha of 1 `loss` is not computed."""
    term = settings.distillation_alpha * distillation(view, targets, settings)
    if settings.distillation_alpha == 1:
        return term
    return (1 - settings.distillation_alpha) * loss(view, targets) + term


def distillation(view: ScoreView, targets: Targets, settings: LossSettings) -> Tensor:
    """The term, a scalar. Raises DataError for a batch without what it goes by."""
    if settings.distillation_type == "cosine":
        return embedding_distance(view, targets)
    if view.teacher is None:
        return _from_stored_scores(view, targets, settings)
    return _from_embeddings(view, targets, settings)


def embedding_distance(view: ScoreView, targets: Targets) -> Tensor:
    """The mean of 1 - cosine between student and teacher, over both sides alike."""
    if targets.teacher is None:
        raise DataError("distillation_type cosine compares with a teacher's embeddings, and the batch brings none")
    sides = ((view.queries, targets.teacher.queries), (view.documents, targets.teacher.documents))
    distances = [1 - _cosines(student, teacher).mean() for student, teacher in sides]
    return (distances[0] + distances[1]) / 2


def _from_embeddings(view: ScoreView, targets: Targets, settings: LossSettings) -> Tensor:
    teacher = view.of_teacher(targets)
    term = _STRIP_TERMS[settings.distillation_type]

    def strip_sum(scores: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        teacher_scores = teacher.rows(masks.start, masks.start + len(scores)).to(scores.dtype)
        return term(scores, teacher_scores, masked_real(masks, teacher), settings.distillation_temperature)

    total, count = sum_over_strips(replace(view, bias=None), partial(mask_strips, targets), strip_sum)
    return total / count.clamp(min=1)


def _from_stored_scores(view: ScoreView, targets: Targets, settings: LossSettings) -> Tensor:
    pairs = graded_pairs(targets, "distillation")
    scores = view.pairs(pairs.queries, pairs.documents)
    teacher_scores = pairs.grades.to(scores.dtype) / (settings.teacher_temperature or 1.0)
    return _PAIR_TERMS[settings.distillation_type](scores, teacher_scores, pairs, settings.distillation_temperature)


def _kl_divergences(scores: Tensor, teacher_scores: Tensor, masks: Masks, temperature: float) -> tuple[Tensor, Tensor]:
    """kl. Of a query that has no document both distributions are over all, and nothing is counted."""
    some = masks.valid.any(dim=1, keepdim=True)
    left_out = ~masks.valid & some
    student, teacher = (
        (side / temperature).masked_fill(left_out, float("-inf")).log_softmax(dim=1).masked_fill(~masks.valid, 0)
        for side in (scores, teacher_scores)
    )
    probabilities = teacher.exp().masked_fill(~masks.valid, 0)
    return temperature**2 * (probabilities * (teacher - student)).sum(), some.sum()


def _squared_errors(scores: Tensor, teacher_scores: Tensor, masks: Masks, _temperature: float) -> tuple[Tensor, Tensor]:
    """mse."""
    return (scores - teacher_scores).masked_fill(~masks.valid, 0).square().sum(), masks.valid.sum()


def _squared_margin_errors(
    scores: Tensor, teacher_scores: Tensor, masks: Masks, _temperature: float
) -> tuple[Tensor, Tensor]:
    """margin_mse. The sum over p, n of (x_p - x_n)^2 from the sums of x and x^2, x being how far s is above t.

    Leads do not change with a number that is taken off all of a query's x, and with their mean off nothing cancels.
    """
    excess = (scores - teacher_scores).masked_fill(~masks.valid, 0)
    means = excess.detach().sum(dim=1, keepdim=True) / masks.valid.sum(dim=1, keepdim=True).clamp(min=1)
    positives, negatives = ((excess - means).masked_fill(~kind, 0) for kind in (masks.positive, masks.negative))
    num_positives, num_negatives = masks.positive.sum(dim=1), masks.negative.sum(dim=1)
    squares = num_negatives * positives.square().sum(dim=1) + num_positives * negatives.square().sum(dim=1)
    mixed = positives.sum(dim=1) * negatives.sum(dim=1)
    return (squares - 2 * mixed).sum(), (num_positives * num_negatives).sum()


def _pair_kl_divergence(scores: Tensor, teacher_scores: Tensor, pairs: GradedPairs, temperature: float) -> Tensor:
    """kl over the documents that each row scores."""
    length = int(pairs.queries.max()) + 1
    student, teacher = (
        side / temperature - grouped_logsumexp(side / temperature, pairs.queries, length)[pairs.queries]
        for side in (scores, teacher_scores)
    )
    num_queries = len(torch.unique(pairs.queries))
    return temperature**2 * (teacher.exp() * (teacher - student)).sum() / num_queries


def _pair_squared_error(scores: Tensor, teacher_scores: Tensor, _pairs: GradedPairs, _temperature: float) -> Tensor:
    return (scores - teacher_scores).square().mean()


def _pair_margin_error(scores: Tensor, teacher_scores: Tensor, pairs: GradedPairs, _temperature: float) -> Tensor:
    return mean_square_of_margins(scores - teacher_scores, pairs)


_STRIP_TERMS: dict[str, _StripTerm] = {
    "kl": _kl_divergences,
    "mse": _squared_errors,
    "margin_mse": _squared_margin_errors,
}
_PAIR_TERMS: dict[str, _PairTerm] = {
    "kl": _pair_kl_divergence,
    "mse": _pair_squared_error,
    "margin_mse": _pair_margin_error,
}


def _cosines(student: Embeddings, teacher: Embeddings) -> Tensor:
    """Of each row's two vectors, [rows]."""
    vectors = at_least_float32(student.vectors)
    return (l2_normalize(vectors) * l2_normalize(at_least_float32(teacher.vectors).to(vectors.dtype))).sum(dim=1)
