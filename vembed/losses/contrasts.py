"""What softmax losses read of all scores: the positive pairs, and a log-sum-exp of each row and each column.

A softmax loss compares a positive's score with the log-sum-exp of what stands against it, its candidates: mostly the
negatives in the query's row, in the document's column, or both; for some losses positives too. So of the whole matrix
it needs no more than

    raw = scorer(queries, documents)                               # [queries, documents]
    s = scale * raw + bias
    l = (s + added).masked_fill(~candidate, -inf)                  # added: 0, or what hardness weighting puts there
    pairs.scores      = s[positive]                                # [pairs]
    by_query.log_sum  = l.logsumexp(dim=1)                         # [queries]
    by_query.total    = s.masked_fill(~candidate, 0).sum(dim=1)    # [queries]    for label smoothing
    by_query.count    = candidate.sum(dim=1)                       # [queries]    for label smoothing

and by_document's, [documents], which are the same along dim=0. `contrasts` makes them in one sweep over strips (blocks
of rows, `vembed.losses.strips`); a column's log-sum-exp grows from strip to strip. Where rows fall into a few large
classes, pairs would be as many as scores: then they are not kept, and `vembed.losses.softmax` makes them strip by strip
in a sweep of its own.

Whatever differentiable function L of these a loss is, its gradient with respect to a score is known from that score and
the sums alone, so that a second sweep forms it. With a, t the gradients of L by by_query's log_sum and total [queries],
b, u those by by_document's [documents], and p that by the pairs' scores [pairs],

    g = a[:, None] * exp(l - by_query.log_sum[:, None]) + b * exp(l - by_document.log_sum)
    g = g + (t[:, None] + u) * candidate
    g[positive] += p                                               # dL/ds, [queries, documents]
    dL/draw = scale * g;    dL/dscale = (g * raw).sum();    dL/dbias = g.sum()

The idea of keeping sums and making scores anew is that of FlashAttention, Dao et al. 2022,
https://arxiv.org/abs/2205.14135.
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
# The log of a sum of nothing: far below any score, but finite, since -inf - -inf is NaN, in the gradient too.
NOTHING = -1e30


@dataclass(frozen=True)
class Candidates:
    """What stands against the positives in a strip, and what is added to its scores in the log-sum-exp.

    chosen: bool [rows, documents]. added: [rows, documents] without gradient, or None for 0.
    """

    chosen: Tensor
    added: Tensor | None = None


# Scores [rows, documents] as the scorer gives them, without gradient, and their masks -> the candidates.
Choose = Callable[[Tensor, Masks], Candidates]


@dataclass(frozen=True)
class CandidateSums:
    """What the candidates of each anchor add up to; anchors are all queries, or all documents: [anchors] each.

    log_sum: log-sum-exp of the candidates' scores, NOTHING without any. total: their sum. count: how many (float).
    """

    log_sum: Tensor
    total: Tensor
    count: Tensor

    def __add__(self, other: "CandidateSums") -> "CandidateSums":
        """The sums over the candidates of both."""
        log_sum = torch.logaddexp(self.log_sum, other.log_sum)
        return CandidateSums(log_sum, self.total + other.total, self.count + other.count)

    def at(self, numbers: Tensor) -> "CandidateSums":
        """The sums of the anchors with these numbers, int64 [pairs]: [pairs] each."""
        return CandidateSums(self.log_sum[numbers], self.total[numbers], self.count[numbers])


@dataclass(frozen=True)
class Pairs:
    """The positive pairs in order of queries, int64 [pairs] each, and their scores [pairs]."""

    queries: Tensor
    documents: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Contrasts:
    """The positive pairs of a batch, None where they are too many to keep, and the candidates' sums for both sides.

    positives_per_query, positives_per_document: the number of positives of each, int64 [queries] and [documents].
    """

    view: ScoreView
    masks: MaskStrips
    pairs: Pairs | None
    by_query: CandidateSums
    by_document: CandidateSums
    positives_per_query: Tensor
    positives_per_document: Tensor


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
    """The contrasts of a batch; sums that are not asked for may be those of no candidate: NOTHING, 0 and 0.

    choose: the candidates of a strip. columns: by_document is wanted. totals: the totals and counts are.

    >>> from vembed.scoring import dot
    >>> from vembed.types import Embeddings
    >>> diagonal = torch.eye(2).bool()
    >>> queries, documents = torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.eye(2)  # so these are the scores as well
    >>> view = ScoreView(Embeddings(queries), Embeddings(documents), dot, torch.ones(1))
    >>> found = contrasts(view, lambda _rows: iter([Masks(diagonal, torch.ones_like(diagonal), ~diagonal)]))
    >>> found.pairs.scores, found.by_query.log_sum, found.by_document.log_sum
    (tensor([3., 2.]), tensor([1., 0.]), tensor([0., 1.]))
    """
    if is_small(view):
        return _dense_contrasts(view, masks, choose, totals=totals)
    plan = _Plan(view, masks, choose, columns, totals)
    sums = _Sums(*_StripContrasts.apply(*strip_vectors(view), view.scale, view.bias, plan))
    kept = len(sums.queries) == int(sums.positives_per_query.sum())  # pairs are kept all or not at all
    return Contrasts(
        view,
        masks,
        Pairs(sums.queries, sums.documents, sums.scores) if kept else None,
        CandidateSums(sums.row_log_sum, sums.row_total, sums.row_count),
        CandidateSums(sums.column_log_sum, sums.column_total, sums.column_count),
        sums.positives_per_query,
        sums.positives_per_document,
    )


class _Sums(NamedTuple):
    """`Contrasts` as plain tensors, which is what autograd takes. No pairs where they are more than are kept.

    queries (ascending), documents, scores: [pairs]. row_*, positives_per_query: [queries]. column_*,
    positives_per_document: [documents].
    """

    queries: Tensor
    documents: Tensor
    scores: Tensor
    row_log_sum: Tensor
    row_total: Tensor
    row_count: Tensor
    column_log_sum: Tensor
    column_total: Tensor
    column_count: Tensor
    positives_per_query: Tensor
    positives_per_document: Tensor


@dataclass(frozen=True)
class _Plan:
    """The arguments of `contrasts`, for both sweeps."""

    view: ScoreView
    masks: MaskStrips
    choose: Choose
    columns: bool
    totals: bool


def _dense_contrasts(view: ScoreView, masks: MaskStrips, choose: Choose, *, totals: bool) -> Contrasts:
    raw = view.scorer(view.queries, view.documents)  # [queries, documents]
    kinds = masked_real(next(masks(max(1, num_rows(view.queries)))), view)  # one strip of all rows
    # What is a candidate is a decision, and what is added to it a constant: no gradient goes that way.
    candidates = choose(raw.detach(), kinds)
    scores = view.scale_and_shift(raw)
    logits = scores if candidates.added is None else scores + candidates.added
    queries, documents = kinds.positive.nonzero(as_tuple=True)
    chosen = candidates.chosen
    return Contrasts(
        view,
        masks,
        Pairs(queries, documents, scores[queries, documents]),  # [pairs] each
        _against(scores, logits, chosen, totals=totals),
        _against(scores.T, logits.T, chosen.T, totals=totals),
        kinds.positive.sum(dim=1),
        kinds.positive.sum(dim=0),
    )


def _against(scores: Tensor, logits: Tensor, chosen: Tensor, *, totals: bool) -> CandidateSums:
    """The sums along each row of tensors [anchors, others]. logits: the scores with what is added to them."""
    some = chosen.any(dim=1)  # [anchors]
    kept = logits.masked_fill(~chosen, float("-inf"))
    # The log-sum-exp of a row of -inf has a gradient of NaN, even where its value is not used: such rows are zeros.
    log_sum = kept.masked_fill(~some[:, None], 0).logsumexp(dim=1)  # [anchors]
    total = scores.masked_fill(~chosen, 0).sum(dim=1) if totals else torch.zeros_like(log_sum)
    count = chosen.sum(dim=1).to(scores.dtype) if totals else torch.zeros_like(log_sum)
    return CandidateSums(torch.where(some, log_sum, NOTHING), total, count)


class _StripContrasts(torch.autograd.Function):
    """(queries [queries, ..., dim], documents [documents, ..., dim], scale [1], bias [1] or None, plan) -> `_Sums`.

    The scores are made twice, in `forward` and in `backward`, and are never held but for one strip. The formulas are at
    the head of this file.
    """

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
        strips = ScoreStrips(plan.view, queries, documents, requires_grad=False)
        for strip, masks in strips.with_masks(plan.masks):
            sweep.add(strip.start, strip.scores, masks)
        sums = sweep.sums()
        ctx.plan, ctx.has_bias = plan, bias is not None
        ctx.save_for_backward(
            queries, documents, scale, bias, sums.queries, sums.documents, sums.row_log_sum, sums.column_log_sum
        )
        ctx.mark_non_differentiable(
            *(
                sums.queries,
                sums.documents,
                sums.row_count,
                sums.column_count,
                sums.positives_per_query,
                sums.positives_per_document,
            )
        )
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # Any: as above
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        grad = _Sums(*gradients)  # of what `forward` gave, each in the place of what it is the gradient of
        plan: _Plan = ctx.plan
        queries, documents, scale, bias, pair_queries, pair_documents, row_log_sum, column_log_sum = ctx.saved_tensors
        strips = ScoreStrips(plan.view, queries, documents, requires_grad=True)
        grad_scale, grad_bias = torch.zeros_like(scale), torch.zeros_like(scale)
        rows = strip_rows(plan.view)
        # Pairs are in order of queries: those of strip number i are bounds[i] to bounds[i + 1]. One search for all
        # strips, since each answer that Python reads waits for the device.
        starts = torch.arange(0, len(queries) + rows, rows, device=scale.device)  # [strips + 1]
        bounds: list[int] = torch.searchsorted(pair_queries, starts).tolist()
        for number, (strip, masks) in enumerate(strips.with_masks(plan.masks)):
            part = slice(strip.start, strip.start + len(strip.scores))
            candidates = plan.choose(strip.scores, masks)
            logits = _logits(strip.scores, candidates, scale, bias)  # [rows, documents]
            # exp(logit - log_sum) is the softmax among the candidates, and 0 for the rest. In place where it can
            # be: what has the size of a strip is what a sweep's memory is made of.
            grad_scores = (logits - row_log_sum[part, None]).exp_().mul_(grad.row_log_sum[part, None])
            if plan.columns:
                grad_scores += logits.sub_(column_log_sum).exp_().mul_(grad.column_log_sum)
            if plan.totals:
                grad_scores += (grad.row_total[part, None] + grad.column_total) * candidates.chosen
            pairs = slice(bounds[number], bounds[number + 1])
            # A pair stands in the list once, so that += by numbers loses nothing.
            grad_scores[pair_queries[pairs] - strip.start, pair_documents[pairs]] += grad.scores[pairs]
            grad_bias += grad_scores.sum()
            grad_scale += torch.dot(grad_scores.flatten(), strip.scores.flatten())
            strip.backward(grad_scores.mul_(scale))
        return *strips.gradients, grad_scale, grad_bias if ctx.has_bias else None, None


def _logits(raw: Tensor, candidates: Candidates, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The candidates' scores [rows, documents] with temperature and bias, -inf elsewhere."""
    logits = raw * scale
    if bias is not None:
        logits += bias
    if candidates.added is not None:
        logits += candidates.added
    return logits.masked_fill_(~candidates.chosen, float("-inf"))


class _Sweep:
    """Adds up the sums of a batch, strip by strip.

    What stays is allocated before the first strip: small tensors that stay, allocated between the large ones that each
    strip frees again, would fragment the heap.
    """

    def __init__(self, plan: _Plan, scale: Tensor, bias: Tensor | None) -> None:
        self._plan, self._scale, self._bias = plan, scale, bias
        num_queries, num_documents = num_rows(plan.view.queries), num_rows(plan.view.documents)
        self._pairs = _Pairs(num_queries, scale)
        self._row_log_sum, self._row_total, self._row_count = scale.new_zeros(3, num_queries)  # [queries] each
        self._column_log_sum = scale.new_full((num_documents,), float("-inf"))  # the log of no sum yet
        self._column_total, self._column_count = scale.new_zeros(2, num_documents)  # [documents] each
        self._per_query = torch.zeros(num_queries, dtype=torch.int64, device=scale.device)
        self._per_document = torch.zeros(num_documents, dtype=torch.int64, device=scale.device)

    def add(self, start: int, raw: Tensor, masks: Masks) -> None:
        """Add the strip of raw scores [rows, documents] from query `start` on."""
        candidates = self._plan.choose(raw, masks)
        rows = slice(start, start + len(raw))  # whole rows: their sums are final, while those of columns go on growing
        self._per_query[rows] = masks.positive.sum(dim=1)
        self._per_document += masks.positive.sum(dim=0)
        if self._pairs.has_room(int(self._per_query[rows].sum())):
            queries, documents = masks.positive.nonzero(as_tuple=True)
            self._pairs.add(queries + start, documents, self._shifted(raw[queries, documents]))
        logits = _logits(raw, candidates, self._scale, self._bias)  # [rows, documents]
        self._row_log_sum[rows] = logits.logsumexp(dim=1)
        if self._plan.columns:
            torch.logaddexp(self._column_log_sum, logits.logsumexp(dim=0), out=self._column_log_sum)
        if self._plan.totals:
            chosen = candidates.chosen
            totals = self._shifted(raw).masked_fill_(~chosen, 0)
            self._row_total[rows], self._row_count[rows] = totals.sum(dim=1), chosen.sum(dim=1)
            self._column_total += totals.sum(dim=0)
            self._column_count += chosen.sum(dim=0)

    def sums(self) -> _Sums:
        """The sums over all strips."""
        # Anchors without a candidate have -inf so far, from which backward cannot take differences.
        row_log_sum, column_log_sum = (side.clamp(min=NOTHING) for side in (self._row_log_sum, self._column_log_sum))
        rows = (row_log_sum, self._row_total.clone(), self._row_count.clone())
        columns = (column_log_sum, self._column_total.clone(), self._column_count.clone())
        return _Sums(*self._pairs.all(), *rows, *columns, self._per_query, self._per_document)

    def _shifted(self, raw: Tensor) -> Tensor:
        scaled = raw * self._scale
        return scaled if self._bias is None else scaled + self._bias


class _Pairs:
    """The positive pairs so far, in buffers that double when they are full; none, once they were more than are kept.

    size: pairs that fit in at first. like: a tensor of the scores' dtype.
    """

    def __init__(self, size: int, like: Tensor) -> None:
        self._numbers = torch.empty(2, size, dtype=torch.int64, device=like.device)  # of queries, of documents
        self._scores = like.new_empty(size)
        self._length = 0
        self._too_many = False

    def has_room(self, more: int) -> bool:
        """Whether so many more are to be added. Where they would be too many, all are forgotten, and no more taken."""
        if not self._too_many and self._length + more > PAIRS_KEPT:
            self._too_many, self._length = True, 0
            self._numbers, self._scores = self._numbers[:, :0], self._scores[:0]
        return not self._too_many

    def add(self, queries: Tensor, documents: Tensor, scores: Tensor) -> None:
        """Add pairs, [pairs] each, that come after those so far."""
        end = self._length + len(scores)
        if end > len(self._scores):
            more = max(end, 2 * len(self._scores)) - len(self._scores)  # doubling copies each pair about once
            self._numbers = torch.nn.functional.pad(self._numbers, (0, more))
            self._scores = torch.nn.functional.pad(self._scores, (0, more))
        new = slice(self._length, end)
        self._numbers[0, new], self._numbers[1, new], self._scores[new] = queries, documents, scores
        self._length = end

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, documents and scores, [pairs] each."""
        queries, documents = self._numbers[:, : self._length].clone()
        return queries, documents, self._scores[: self._length].clone()
