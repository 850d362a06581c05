"""Scores in strips of query rows, and the gradient of what is made of them, without a matrix of all scores.

A strip is a block of whole rows of the matrix: the scores of some queries against all documents.

    the strips of a score view                       ScoreStrips
    a loss whose rows need nothing of other rows     sum_over_strips: gradient formed strip by strip, in the forward
    sums over rows and columns (softmax losses)      vembed.losses.contrasts

In the dense form, for scores that are inner products and a loss of all of them,

    raw = queries @ documents.T                      # [queries, documents]
    g = dL/d(scale * raw + bias)                     # [queries, documents]
    dL/dqueries = scale * g @ documents              # [queries, dim]
    dL/ddocuments = scale * g.T @ queries            # [documents, dim]
    dL/dscale = (g * raw).sum();    dL/dbias = g.sum()

each of which is a sum over strips, or strips one below the other, so that no more than one strip of raw and g exists.
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
_ACCELERATOR_SCORES = 2**26  # scores in one strip elsewhere
# Up to as many scores, all are one strip: the plain graph of autograd, which keeps a dozen tensors of them.
DENSE_SCORES = 2**18
_DENSE_FACTOR = 4  # times as many where scores are no inner products (MaxSim), which are expensive to make twice

Backward = Callable[[Tensor], None]


@dataclass(frozen=True)
class Strip:
    """The scores [rows, documents] of the queries from number `start` on, as the scorer gives them; no graph.

    backward: given the loss's gradient with respect to these scores, [rows, documents], adds what follows of it to the
    `gradients` of the `ScoreStrips`; called once at most.
    """

    start: int
    scores: Tensor
    backward: Backward


StripLoss = Callable[..., tuple[Tensor, Tensor]]  # `loss` of `sum_over_strips`


def is_small(view: ScoreView) -> bool:
    """True if all scores are to be made at once."""
    return view.num_scores <= DENSE_SCORES * (1 if are_inner_products(view) else _DENSE_FACTOR)


def strip_rows(view: ScoreView) -> int:
    """Queries in one strip, at least one."""
    documents = max(1, num_rows(view.documents))
    if view.scale.device.type != "cpu":
        return max(1, _ACCELERATOR_SCORES // documents)
    return max(1, min(max(_STRIP_ROWS * documents, FEWEST_SCORES), MOST_SCORES) // documents)


def most_scores(num_queries: int, num_documents: int, device_type: str) -> int:
    """The most scores of a batch that exist at once: all of a small one, else those of a strip.

    >>> most_scores(512, 512, "cpu"), most_scores(32_768, 32_768, "cpu")
    (262144, 1048576)
    """
    strip = max(MOST_SCORES if device_type == "cpu" else _ACCELERATOR_SCORES, num_documents)
    return min(num_queries * num_documents, max(strip, _DENSE_FACTOR * DENSE_SCORES))


def masked_real(masks: Masks, view: ScoreView) -> Masks:
    """The masks without scores that say nothing because a side has no real token."""
    if view.queries.mask is None and view.documents.mask is None:
        return masks
    rows = take_rows(view.queries, masks.start, masks.start + len(masks.valid))
    real = real_scores(rows, view.documents)  # [rows, documents]
    return Masks(masks.positive & real, masks.valid & real, masks.explicit & real, masks.start)


def sum_over_strips(view: ScoreView, masks: MaskStrips, loss: StripLoss, *others: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over all strips of what `loss` gives for one: a scalar, and a scalar count without gradient.

    loss: scores [rows, documents] with temperature and bias, their masks, and the `others` -> the two scalars. It must
    need nothing of other rows, so that the sums do not depend on where strips begin. others: floats of any shape that
    it reads besides, the same for every strip, and that get a gradient: sums over columns, or weights of classes.

    >>> from vembed.scoring import dot
    >>> view = ScoreView(Embeddings(torch.eye(2)), Embeddings(torch.eye(2)), dot, torch.tensor([3.0]))
    >>> positive = torch.eye(2).bool()
    >>> def sum_of_positives(scores, masks):
    ...     return scores[masks.positive].sum(), masks.positive.sum()
    >>> sum_over_strips(view, lambda _rows: iter([Masks(positive, positive, ~positive)]), sum_of_positives)
    (tensor(6.), tensor(2))
    """
    if is_small(view):
        every = next(masks(max(1, num_rows(view.queries))))  # one strip of all rows
        return loss(view.dense(), masked_real(every, view), *others)
    queries, documents = strip_vectors(view)
    total, count = _StripSum.apply(queries, documents, view.scale, view.bias, _Plan(view, masks, loss), *others)
    return total, count


class ScoreStrips:
    """The strips of a view's scores, and the gradients that their `backward`s have added up to.

    queries, documents: the vectors that the strips are made of, as `strip_vectors` gives them. gradients: of these
    two, in their shapes; without `requires_grad` there are none, and no `backward` may be called.
    """

    def __init__(self, view: ScoreView, queries: Tensor, documents: Tensor, *, requires_grad: bool) -> None:
        self._view, self._queries, self._documents = view, queries, documents
        self._are_products = are_inner_products(view)
        self._requires_grad = requires_grad
        self.gradients = tuple(torch.zeros_like(side) for side in (queries, documents) if requires_grad)

    def __iter__(self) -> Iterator[Strip]:
        rows = strip_rows(self._view)
        for start in range(0, len(self._queries), rows):
            make = self._product_strip if self._are_products else self._scored_strip
            yield make(start, min(start + rows, len(self._queries)))

    def with_masks(self, masks: MaskStrips) -> Iterator[tuple[Strip, Masks]]:
        """Each strip with its masks, without scores that say nothing."""
        for strip, kinds in zip(self, masks(strip_rows(self._view)), strict=True):
            yield strip, masked_real(kinds, self._view)

    def _product_strip(self, start: int, stop: int) -> Strip:
        rows = self._queries[start:stop]  # [rows, dim]

        def backward(gradient: Tensor) -> None:
            grad_queries, grad_documents = self.gradients
            # Rows are in one strip only, so that theirs is written; documents are in all, so that theirs is added.
            with torch.autocast(rows.device.type, enabled=False):  # it would round the gradient to half precision
                torch.mm(gradient, self._documents, out=grad_queries[start:stop])  # [rows, dim]
                grad_documents.addmm_(gradient.T, rows)  # [documents, dim]

        return Strip(start, inner_products(rows, self._documents), backward)

    def _scored_strip(self, start: int, stop: int) -> Strip:
        """The strip of any scorer: its own graph gives the gradient."""
        view, requires_grad = self._view, self._requires_grad
        # Inside a custom Function autograd is off; this strip has a small graph of its own, from leaves of its own.
        with torch.set_grad_enabled(requires_grad):
            rows = self._queries[start:stop].detach().requires_grad_(requires_grad)  # [rows, tokens, dim]
            documents = self._documents.detach().requires_grad_(requires_grad)  # [documents, tokens, dim]
            queries = take_rows(view.queries, start, stop)
            scores = view.scorer(Embeddings(rows, queries.mask), Embeddings(documents, view.documents.mask))

        def backward(gradient: Tensor) -> None:
            grad_queries, grad_documents = self.gradients
            added = torch.autograd.grad(scores, (rows, documents), gradient, materialize_grads=True)
            grad_queries[start:stop] = added[0]
            grad_documents += added[1]

        return Strip(start, scores.detach(), backward)


def are_inner_products(view: ScoreView) -> bool:
    """True if the scores are inner products of one vector each."""
    nothing = Embeddings(view.queries.vectors[:0])  # no rows: what is asked is the scorer's kind, not its vectors
    return view.queries.vectors.ndim == 2 and inner_product_vectors(view.scorer, nothing, nothing) is not None


def strip_vectors(view: ScoreView) -> tuple[Tensor, Tensor]:
    """The vectors of both sides that strips are made of, at least float32, in the shapes of the view's.

    Of a cosine they are normalised, once and with a graph: the rest is inner products of what is given here.
    """
    vectors = inner_product_vectors(view.scorer, view.queries, view.documents) if are_inner_products(view) else None
    if vectors is not None:
        return vectors
    return at_least_float32(view.queries.vectors), at_least_float32(view.documents.vectors)


@dataclass(frozen=True)
class _Plan:
    """The arguments of `sum_over_strips` that are no tensors."""

    view: ScoreView
    masks: MaskStrips
    loss: StripLoss


class _StripSum(torch.autograd.Function):
    """(queries, documents, scale [1], bias [1] or None, plan, others) -> total and count, both scalars.

    The gradient of a sum over strips is the sum of the strips' gradients, and the total is a scalar: so `forward` forms
    the gradient while it has each strip, and `backward` multiplies it by the total's. Scores are made once.
    """

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
        requires_grad = any(ctx.needs_input_grad)
        leaves = [other.detach().requires_grad_(requires_grad) for other in others]
        grad_others = [torch.zeros_like(leaf) for leaf in leaves]
        strips = ScoreStrips(plan.view, queries, documents, requires_grad=requires_grad)
        total, count = scale.new_zeros(()), scale.new_zeros(())
        grad_scale, grad_bias = torch.zeros_like(scale), torch.zeros_like(scale)
        for strip, masks in strips.with_masks(plan.masks):
            scores = strip.scores * scale if bias is None else strip.scores * scale + bias  # [rows, documents]
            scores.requires_grad_(requires_grad)  # a leaf: the strip's graph is the loss alone
            with torch.set_grad_enabled(requires_grad):
                part, counted = plan.loss(scores, masks, *leaves)
            total += part.detach()
            count += counted.detach()
            if requires_grad and part.requires_grad:  # a strip in which the loss finds nothing is a plain 0
                grad_scores, *more = torch.autograd.grad(part, [scores, *leaves], materialize_grads=True)
                for grad_other, added in zip(grad_others, more, strict=True):
                    grad_other.add_(added)
                grad_bias += grad_scores.sum()
                grad_scale += torch.linalg.vecdot(grad_scores.flatten(), strip.scores.flatten())
                strip.backward(grad_scores * scale)
        if requires_grad:
            ctx.save_for_backward(*strips.gradients, grad_scale, grad_bias, *grad_others)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # Any: as above
        gradient: Tensor,
        _grad_count: Tensor,
    ) -> tuple[Tensor | None, ...]:
        saved = (one * gradient for one in ctx.saved_tensors)
        grad_queries, grad_documents, grad_scale, grad_bias, *grad_others = saved
        return grad_queries, grad_documents, grad_scale, grad_bias if ctx.has_bias else None, None, *grad_others
