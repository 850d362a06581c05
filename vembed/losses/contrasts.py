"""What softmax losses read of all scores: the positives, and per row and column what the negatives add up to.

A softmax loss compares a positive's score with the log-sum-exp of negatives: along the query's row, along the
document's column, or both. So all it needs is

    the scores of the positive pairs                   [pairs]
    log sum exp (and sum) of the negatives of a row    [queries]
    log sum exp (and sum) of those of a column         [documents]

which `contrasts` makes in one sweep over strips of rows; a column's log-sum-exp grows from strip to strip. Where rows
fall into a few large classes, pairs would be as many as scores: then they are not kept, and `vembed.losses.softmax`
makes them strip by strip in a sweep of its own. Whatever
differentiable function of these a loss is, its gradient with respect to a score is then known from the score alone,

    d/d s_qd = w_qd ( a_q exp(s_qd - row_q) + b_d exp(s_qd - column_d) + ... )

with a, b the gradients of the row's and column's log-sum-exps, so that a second sweep over the strips forms it. The
idea of keeping sums and making scores anew is that of FlashAttention, Dao et al. 2022, https://arxiv.org/abs/2205.14135.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vembed.grad_cache.cachex.tree_utils import num_rows
from vembed.losses.masks import Masks, MaskStrips
from vembed.losses.objective import ScoreView
from vembed.losses.strips import ScoreStrips, is_small, masked_real, strip_rows, strip_vectors

# Positive pairs that are kept at most; more are made anew, strip by strip.
PAIRS_KEPT = 2**20
# The log of a sum of nothing: far below any score, but finite, so that no gradient is NaN.
NOTHING = -1e30


@dataclass(frozen=True)
class Candidates:
    """What stands against the positives in a strip: bool [rows, documents], and what is added to the scores there.

    added: [rows, documents] without gradient, or None.
    """

    negative: Tensor
    added: Tensor | None = None


# Scores [rows, documents] as the scorer gives them, without gradient, and their masks -> the candidates.
Choose = Callable[[Tensor, Masks], Candidates]


@dataclass(frozen=True)
class Against:
    """What stands against each row or column: [queries] or [documents] each.

    log_sum: of the negatives' scores, NOTHING without any. total: their sum. count: how many they are (float).
    """

    log_sum: Tensor
    total: Tensor
    count: Tensor

    def __add__(self, other: "Against") -> "Against":
        """What stands in either."""
        log_sum = torch.logaddexp(self.log_sum, other.log_sum)
        return Against(log_sum, self.total + other.total, self.count + other.count)

    def at(self, numbers: Tensor) -> "Against":
        """The rows or columns with these numbers."""
        return Against(self.log_sum[numbers], self.total[numbers], self.count[numbers])


@dataclass(frozen=True)
class Pairs:
    """The positive pairs in order of queries, int64 [pairs] each, and their scores [pairs]."""

    queries: Tensor
    documents: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Contrasts:
    """The positive pairs of a batch, None where they are too many to keep, and what stands against both sides.

    per_query, per_document: how many positives each has, int64 [queries] and [documents].
    """

    view: ScoreView
    masks: MaskStrips
    pairs: Pairs | None
    by_query: Against
    by_document: Against
    per_query: Tensor
    per_document: Tensor


def all_negatives(_scores: Tensor, masks: Masks) -> Candidates:
    """Every negative is a candidate, as it is."""
    return Candidates(masks.negative)


def contrasts(
    view: ScoreView,
    masks: MaskStrips,
    choose: Choose = all_negatives,
    *,
    columns: bool = True,
    totals: bool = False,
) -> Contrasts:
    """The contrasts of a batch; what is not asked for, columns or totals, may be nothing and 0."""
    if is_small(view):
        return _dense_contrasts(view, masks, choose, totals=totals)
    plan = _Plan(view, masks, choose, columns, totals)
    sums = _Sums(*_StripContrasts.apply(*strip_vectors(view), view.scale, view.bias, plan))
    kept = len(sums.queries) == int(sums.per_query.sum())
    return Contrasts(
        view,
        masks,
        Pairs(sums.queries, sums.documents, sums.scores) if kept else None,
        Against(sums.row_log_sum, sums.row_total, sums.row_count),
        Against(sums.column_log_sum, sums.column_total, sums.column_count),
        sums.per_query,
        sums.per_document,
    )


class _Sums(NamedTuple):
    """What one sweep gives. No pairs where they are more than are kept."""

    queries: Tensor
    documents: Tensor
    scores: Tensor
    row_log_sum: Tensor
    row_total: Tensor
    row_count: Tensor
    column_log_sum: Tensor
    column_total: Tensor
    column_count: Tensor
    per_query: Tensor
    per_document: Tensor


@dataclass(frozen=True)
class _Plan:
    view: ScoreView
    masks: MaskStrips
    choose: Choose
    columns: bool
    totals: bool


def _dense_contrasts(view: ScoreView, masks: MaskStrips, choose: Choose, *, totals: bool) -> Contrasts:
    raw = view.scorer(view.queries, view.documents)
    kinds = masked_real(next(masks(max(1, num_rows(view.queries)))), view)
    candidates = choose(raw.detach(), kinds)
    scores = view.shifted(raw)
    logits = scores if candidates.added is None else scores + candidates.added
    queries, documents = kinds.positive.nonzero(as_tuple=True)
    negative = candidates.negative
    return Contrasts(
        view,
        masks,
        Pairs(queries, documents, scores[queries, documents]),
        _against(scores, logits, negative, totals=totals),
        _against(scores.T, logits.T, negative.T, totals=totals),
        kinds.positive.sum(dim=1),
        kinds.positive.sum(dim=0),
    )


def _against(scores: Tensor, logits: Tensor, negative: Tensor, *, totals: bool) -> Against:
    """Along the rows of [anchors, others] tensors."""
    some = negative.any(dim=1)
    kept = logits.masked_fill(~negative, float("-inf"))
    log_sum = kept.masked_fill(~some[:, None], 0).logsumexp(dim=1)
    total = scores.masked_fill(~negative, 0).sum(dim=1) if totals else torch.zeros_like(log_sum)
    count = negative.sum(dim=1).to(scores.dtype) if totals else torch.zeros_like(log_sum)
    return Against(torch.where(some, log_sum, NOTHING), total, count)


class _StripContrasts(torch.autograd.Function):
    """(queries, documents, scale [1], bias [1] or None, plan) -> `_Sums`."""

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch exports no type
        queries: Tensor,
        documents: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        plan: _Plan,
    ) -> tuple[Tensor, ...]:
        sweep = _Sweep(plan, scale, bias)
        for strip, masks in zip(
            ScoreStrips(plan.view, queries, documents, learn=False), plan.masks(strip_rows(plan.view)), strict=True
        ):
            sweep.add(strip.start, strip.scores, masked_real(masks, plan.view))
        sums = sweep.sums()
        ctx.plan, ctx.has_bias = plan, bias is not None
        ctx.save_for_backward(
            queries, documents, scale, bias, sums.queries, sums.documents, sums.row_log_sum, sums.column_log_sum
        )
        ctx.mark_non_differentiable(
            *(sums.queries, sums.documents, sums.row_count, sums.column_count, sums.per_query, sums.per_document)
        )
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # Any: as above
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        of = _Sums(*gradients)
        plan: _Plan = ctx.plan
        queries, documents, scale, bias, pair_queries, pair_documents, row_log_sum, column_log_sum = ctx.saved_tensors
        strips = ScoreStrips(plan.view, queries, documents, learn=True)
        of_scale, of_bias = torch.zeros_like(scale), torch.zeros_like(scale)
        rows = strip_rows(plan.view)
        starts = torch.arange(0, len(queries) + rows, rows, device=scale.device)
        bounds: list[int] = torch.searchsorted(pair_queries, starts).tolist()
        for number, (strip, masks) in enumerate(zip(strips, plan.masks(rows), strict=True)):
            part = slice(strip.start, strip.start + len(strip.scores))
            candidates = plan.choose(strip.scores, masked_real(masks, plan.view))
            logits = _logits(strip.scores, candidates, scale, bias)
            gradient = (logits - row_log_sum[part, None]).exp_().mul_(of.row_log_sum[part, None])
            if plan.columns:
                gradient += logits.sub_(column_log_sum).exp_().mul_(of.column_log_sum)
            if plan.totals:
                gradient += (of.row_total[part, None] + of.column_total) * candidates.negative
            pairs = slice(bounds[number], bounds[number + 1])
            gradient[pair_queries[pairs] - strip.start, pair_documents[pairs]] += of.scores[pairs]
            of_bias += gradient.sum()
            of_scale += torch.dot(gradient.flatten(), strip.scores.flatten())
            strip.pull(gradient.mul_(scale))
        return *strips.gradients, of_scale, of_bias if ctx.has_bias else None, None


def _logits(raw: Tensor, candidates: Candidates, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The candidates' scores [rows, documents] with temperature and bias, -inf elsewhere."""
    logits = raw * scale
    if bias is not None:
        logits += bias
    if candidates.added is not None:
        logits += candidates.added
    return logits.masked_fill_(~candidates.negative, float("-inf"))


class _Sweep:
    """Adds up the sums of a batch, strip by strip.

    What stays has its room from the beginning: room made between the passing ones of each strip would leave the heap
    full of holes of their size.
    """

    def __init__(self, plan: _Plan, scale: Tensor, bias: Tensor | None) -> None:
        self._plan, self._scale, self._bias = plan, scale, bias
        num_queries, num_documents = num_rows(plan.view.queries), num_rows(plan.view.documents)
        self._pairs = _Pairs(num_queries, scale)
        self._row_log_sum, self._row_total, self._row_count = scale.new_zeros(3, num_queries)
        self._column_log_sum = scale.new_full((num_documents,), float("-inf"))
        self._column_total, self._column_count = scale.new_zeros(2, num_documents)
        self._per_query = torch.zeros(num_queries, dtype=torch.int64, device=scale.device)
        self._per_document = torch.zeros(num_documents, dtype=torch.int64, device=scale.device)

    def add(self, start: int, raw: Tensor, masks: Masks) -> None:
        """The strip of scores [rows, documents] from query `start` on."""
        candidates = self._plan.choose(raw, masks)
        rows = slice(start, start + len(raw))
        self._per_query[rows] = masks.positive.sum(dim=1)
        self._per_document += masks.positive.sum(dim=0)
        if self._pairs.has_room(int(self._per_query[rows].sum())):
            queries, documents = masks.positive.nonzero(as_tuple=True)
            self._pairs.add(queries + start, documents, self._shifted(raw[queries, documents]))
        logits = _logits(raw, candidates, self._scale, self._bias)
        self._row_log_sum[rows] = logits.logsumexp(dim=1)
        if self._plan.columns:
            torch.logaddexp(self._column_log_sum, logits.logsumexp(dim=0), out=self._column_log_sum)
        if self._plan.totals:
            negative = candidates.negative
            totals = self._shifted(raw).masked_fill_(~negative, 0)
            self._row_total[rows], self._row_count[rows] = totals.sum(dim=1), negative.sum(dim=1)
            self._column_total += totals.sum(dim=0)
            self._column_count += negative.sum(dim=0)

    def sums(self) -> _Sums:
        """What all strips add up to."""
        row_log_sum, column_log_sum = (side.clamp(min=NOTHING) for side in (self._row_log_sum, self._column_log_sum))
        rows = (row_log_sum, self._row_total.clone(), self._row_count.clone())
        columns = (column_log_sum, self._column_total.clone(), self._column_count.clone())
        return _Sums(*self._pairs.all(), *rows, *columns, self._per_query, self._per_document)

    def _shifted(self, raw: Tensor) -> Tensor:
        scaled = raw * self._scale
        return scaled if self._bias is None else scaled + self._bias


class _Pairs:
    """The positive pairs so far, in room that doubles when it is full; none, once they were more than are kept.

    like: a tensor of the scores' dtype.
    """

    def __init__(self, room: int, like: Tensor) -> None:
        self._numbers = torch.empty(2, room, dtype=torch.int64, device=like.device)
        self._scores = like.new_empty(room)
        self._length = 0
        self._too_many = False

    def has_room(self, more: int) -> bool:
        """Whether so many more are to be added. Too many once, all are forgotten."""
        if not self._too_many and self._length + more > PAIRS_KEPT:
            self._too_many, self._length = True, 0
            self._numbers, self._scores = self._numbers[:, :0], self._scores[:0]
        return not self._too_many

    def add(self, queries: Tensor, documents: Tensor, scores: Tensor) -> None:
        """Pairs [pairs] that come after those so far."""
        end = self._length + len(scores)
        if end > len(self._scores):
            more = max(end, 2 * len(self._scores)) - len(self._scores)
            self._numbers = torch.nn.functional.pad(self._numbers, (0, more))
            self._scores = torch.nn.functional.pad(self._scores, (0, more))
        new = slice(self._length, end)
        self._numbers[0, new], self._numbers[1, new], self._scores[new] = queries, documents, scores
        self._length = end

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, documents and scores, [pairs] each."""
        queries, documents = self._numbers[:, : self._length].clone()
        return queries, documents, self._scores[: self._length].clone()
