"""Scores in strips of query rows, and the gradient of what is made of them, without a matrix of all scores.

    the strips of a score view                       ScoreStrips
    a loss whose rows need nothing of other rows     sum_over_strips: gradient formed strip by strip, in the forward
    sums over rows and columns (softmax losses)      vembed.losses.contrasts

Up to `DENSE_SCORES` scores are made at once instead: that is as fast, and the numbers are the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vembed.grad_cache.cachex.tree_utils import num_rows, take_rows
from vembed.losses.masks import Masks, MaskStrips
from vembed.losses.objective import ScoreView, real_scores
from vembed.scoring import at_least_float32, inner_product_vectors, inner_products
from vembed.types import Embeddings

# Rows in one strip on a CPU, enough work for a matrix product, and the fewest and most scores there: few enough that
# the handful of tensors made of them stays small, and in the cache.
_STRIP_ROWS = 128
FEWEST_SCORES, MOST_SCORES = 2**18, 2**20
_ACCELERATOR_SCORES = 2**26
# Up to as many scores, all are one strip: the plain graph of autograd, which keeps a dozen tensors of them.
DENSE_SCORES = 2**18
_DEAR = 4  # times as many where scores are not inner products, and dear to make twice

Pull = Callable[[Tensor], None]


@dataclass(frozen=True)
class Strip:
    """The scores [rows, documents] of the queries from number `start` on, as the scorer gives them.

    pull: adds the gradient of these scores, [rows, documents], to that of the embeddings.
    """

    start: int
    scores: Tensor
    pull: Pull


StripLoss = Callable[..., tuple[Tensor, Tensor]]


def is_small(view: ScoreView) -> bool:
    """Whether all scores are to be made at once."""
    return view.num_scores <= DENSE_SCORES * (1 if are_inner_products(view) else _DEAR)


def strip_rows(view: ScoreView) -> int:
    """Queries in one strip, at least one."""
    documents = max(1, num_rows(view.documents))
    if view.scale.device.type != "cpu":
        return max(1, _ACCELERATOR_SCORES // documents)
    return max(1, min(max(_STRIP_ROWS * documents, FEWEST_SCORES), MOST_SCORES) // documents)


def masked_real(masks: Masks, view: ScoreView) -> Masks:
    """The masks without scores that say nothing because a side has no real token."""
    if view.queries.mask is None and view.documents.mask is None:
        return masks
    rows = take_rows(view.queries, masks.start, masks.start + len(masks.valid))
    real = real_scores(rows, view.documents)
    return Masks(masks.positive & real, masks.valid & real, masks.explicit & real, masks.start)


def sum_over_strips(view: ScoreView, masks: MaskStrips, loss: StripLoss, *others: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over all strips of what `loss` gives for one: a scalar, and a scalar count without gradient.

    loss: scores [rows, documents] with temperature and bias, their masks, and the `others` (floats of any shape) -> the
    two scalars. It must need nothing of other rows but what the others say of them, so that the sums do not depend on
    where strips begin.
    """
    if is_small(view):
        return loss(view.dense(), masked_real(next(masks(max(1, num_rows(view.queries)))), view), *others)
    queries, documents = strip_vectors(view)
    total, count = _StripSum.apply(queries, documents, view.scale, view.bias, _Plan(view, masks, loss), *others)
    return total, count


class ScoreStrips:
    """The strips of a view's scores, and the gradients that their `pull`s have added up to.

    queries, documents: the vectors that the strips are made of, as `strip_vectors` gives them. Strips can be pulled
    with `learn` only.
    """

    def __init__(self, view: ScoreView, queries: Tensor, documents: Tensor, *, learn: bool) -> None:
        self._view, self._queries, self._documents = view, queries, documents
        self._are_products = are_inner_products(view)
        self._learn = learn
        self.gradients = tuple(torch.zeros_like(side) for side in (queries, documents) if learn)

    def __iter__(self) -> Iterator[Strip]:
        rows = strip_rows(self._view)
        for start in range(0, len(self._queries), rows):
            make = self._product_strip if self._are_products else self._scored_strip
            yield make(start, min(start + rows, len(self._queries)))

    def _product_strip(self, start: int, stop: int) -> Strip:
        rows = self._queries[start:stop]

        def pull(gradient: Tensor) -> None:
            of_queries, of_documents = self.gradients
            with torch.autocast(rows.device.type, enabled=False):
                torch.mm(gradient, self._documents, out=of_queries[start:stop])
                of_documents.addmm_(gradient.T, rows)

        return Strip(start, inner_products(rows, self._documents), pull)

    def _scored_strip(self, start: int, stop: int) -> Strip:
        """The strip of any scorer: its own graph gives the gradient."""
        view = self._view
        with torch.set_grad_enabled(self._learn):
            rows, documents = (
                vectors.detach().requires_grad_(self._learn) for vectors in (self._queries[start:stop], self._documents)
            )
            queries = take_rows(view.queries, start, stop)
            scores = view.scorer(Embeddings(rows, queries.mask), Embeddings(documents, view.documents.mask))

        def pull(gradient: Tensor) -> None:
            of_queries, of_documents = self.gradients
            added = torch.autograd.grad(scores, (rows, documents), gradient, materialize_grads=True)
            of_queries[start:stop] = added[0]
            of_documents += added[1]

        return Strip(start, scores.detach(), pull)


def are_inner_products(view: ScoreView) -> bool:
    """Whether the scores are inner products of one vector each."""
    nothing = Embeddings(view.queries.vectors[:0])
    return view.queries.vectors.ndim == 2 and inner_product_vectors(view.scorer, nothing, nothing) is not None


def strip_vectors(view: ScoreView) -> tuple[Tensor, Tensor]:
    """The vectors of both sides that strips are made of, at least float32."""
    vectors = inner_product_vectors(view.scorer, view.queries, view.documents) if are_inner_products(view) else None
    if vectors is not None:
        return vectors
    return at_least_float32(view.queries.vectors), at_least_float32(view.documents.vectors)


@dataclass(frozen=True)
class _Plan:
    view: ScoreView
    masks: MaskStrips
    loss: StripLoss


class _StripSum(torch.autograd.Function):
    """(queries, documents, scale [1], bias [1] or None, plan, others) -> total and count, both scalars."""

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch exports no type
        queries: Tensor,
        documents: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        plan: _Plan,
        *others: Tensor,
    ) -> tuple[Tensor, Tensor]:
        learn = any(ctx.needs_input_grad)
        leaves = [other.detach().requires_grad_(learn) for other in others]
        of_others = [torch.zeros_like(leaf) for leaf in leaves]
        strips = ScoreStrips(plan.view, queries, documents, learn=learn)
        total, count = scale.new_zeros(()), scale.new_zeros(())
        of_scale, of_bias = torch.zeros_like(scale), torch.zeros_like(scale)
        for strip, masks in zip(strips, plan.masks(strip_rows(plan.view)), strict=True):
            scores = (strip.scores * scale if bias is None else strip.scores * scale + bias).requires_grad_(learn)
            with torch.set_grad_enabled(learn):
                part, counted = plan.loss(scores, masked_real(masks, plan.view), *leaves)
            total += part.detach()
            count += counted.detach()
            if learn and part.requires_grad:
                gradient, *more = torch.autograd.grad(part, [scores, *leaves], materialize_grads=True)
                for of_other, added in zip(of_others, more, strict=True):
                    of_other.add_(added)
                of_bias += gradient.sum()
                of_scale += torch.linalg.vecdot(gradient.flatten(), strip.scores.flatten())
                strip.pull(gradient * scale)
        if learn:
            ctx.save_for_backward(*strips.gradients, of_scale, of_bias, *of_others)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # Any: as above
        gradient: Tensor,
        _of_count: Tensor,
    ) -> tuple[Tensor | None, ...]:
        of_queries, of_documents, of_scale, of_bias, *of_others = (saved * gradient for saved in ctx.saved_tensors)
        return of_queries, of_documents, of_scale, of_bias if ctx.has_bias else None, None, *of_others
