"""Scores of queries against documents, [queries, documents]: bigger is better, float32 (float64 stays float64).

Padding tokens are masked, never scored.

Late interaction compares every query token with every document token. Over the whole tensor that is

    products = einsum("qid,njd->qinj", queries, documents)           # [queries, tokens, documents, tokens]
    products = products.masked_fill(~document_mask, -inf)
    best = products.amax(dim=3)                                      # [queries, tokens, documents]
    scores = best.masked_fill(~query_mask[:, :, None], 0).sum(dim=1) # [queries, documents]

where rows have real tokens, and 0 where one has none. Here the products are made in tiles and reduced at once, so that
[queries, tokens, documents, tokens] never exists:

    rows in order of length, real tokens only            _rows_by_length
    tiles of rows alike in length                        _buckets, _tiles
    a tile of queries x a tile of documents -> scores    _TileScores
    all of them, in the order given                      maxsim

In a tile, a document is padded with its last real token, which changes no maximum, and a query with zeros, which add
nothing to a sum: a tile needs no mask.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vembed.errors import ModelError
from vembed.registry import Registry
from vembed.types import Embeddings

Scorer = Callable[[Embeddings, Embeddings], Tensor]

# Products in one tile: few enough for the cache of a CPU, enough work for an accelerator.
_CPU_TILE = 2**20
_ACCELERATOR_TILE = 2**26


def cosine(queries: Embeddings, documents: Embeddings) -> Tensor:
    """Cosine of vectors [queries, dim] and [documents, dim]; a vector of zeros scores 0, with gradient 0.

    >>> cosine(Embeddings(torch.tensor([[3.0, 4.0]])), Embeddings(torch.tensor([[1.0, 0.0], [0.0, 2.0]])))
    tensor([[0.6000, 0.8000]])
    """
    return inner_products(l2_normalize(_single_vectors(queries)), l2_normalize(_single_vectors(documents)))


def dot(queries: Embeddings, documents: Embeddings) -> Tensor:
    """Inner product of vectors [queries, dim] and [documents, dim].

    >>> dot(Embeddings(torch.tensor([[3.0, 4.0]])), Embeddings(torch.tensor([[1.0, 0.0], [0.0, 2.0]])))
    tensor([[3., 8.]])
    """
    return inner_products(_single_vectors(queries), _single_vectors(documents))


def maxsim(queries: Embeddings, documents: Embeddings) -> Tensor:
    """Late interaction: each query token's best inner product with a document token, summed over the query's tokens.

    Vectors [queries, tokens, dim] and [documents, tokens, dim]. A document without real tokens scores 0, and so does
    a query without any. (Khattab and Zaharia 2020, https://arxiv.org/abs/2004.12832)

    >>> query = Embeddings(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    >>> document = Embeddings(torch.tensor([[[1.0, 0.5], [0.5, 0.8]]]))
    >>> maxsim(query, document).item()
    1.7999999523162842
    >>> torch.einsum("qid,njd->qinj", query.vectors, document.vectors).amax(dim=3).sum(dim=1).item()
    1.7999999523162842
    """
    _refuse_single(queries, documents)
    tile = _CPU_TILE if queries.vectors.device.type == "cpu" else _ACCELERATOR_TILE
    query_rows, document_rows = _rows_by_length(queries), _rows_by_length(documents)
    # A tile is about as many query tokens as document tokens; documents get what long queries leave of its products.
    query_buckets = _buckets(query_rows, math.isqrt(tile))
    query_tokens = max(bucket.tokens for bucket in query_buckets)
    document_buckets = _buckets(document_rows, tile // query_tokens)
    query_tiles = list(_tiles(queries, query_rows, query_buckets, zeros=True))  # [rows, tokens, dim] each
    # One buffer for the products of all tiles: an allocation for each, between scores that stay, fragments the heap.
    buffer = query_tiles[0].new_empty(query_tokens * max(bucket.tokens for bucket in document_buckets))
    columns = [
        torch.cat([_TileScores.apply(query_tile, document_tile, buffer) for query_tile in query_tiles])
        for document_tile in _tiles(documents, document_rows, document_buckets, zeros=False)
    ]
    scores = torch.cat(columns, dim=1)  # [queries, documents], those with real tokens, by length
    shape = (len(queries.vectors), len(documents.vectors))
    return scores.new_zeros(shape).index_put((query_rows.numbers[:, None], document_rows.numbers), scores)


# What a model's spec says about its similarity and its number of vectors -> the scorer.
ScorerRegistry: Registry[Scorer] = Registry("scorer")
for _name, _scorer in (("cosine", cosine), ("dot", dot), ("maxsim", maxsim)):
    ScorerRegistry.register(_name, _scorer)


def get_scorer(similarity: str, scoring: str = "single") -> Scorer:
    """The scorer of a model: `similarity` ("cosine" or "dot") of single vectors, or "maxsim" where `scoring` says so.

    >>> get_scorer("cosine") is cosine, get_scorer("dot", "maxsim") is maxsim
    (True, True)
    """
    return ScorerRegistry.get(similarity if scoring == "single" else scoring)


def inner_product_vectors(scorer: Scorer, queries: Embeddings, documents: Embeddings) -> tuple[Tensor, Tensor] | None:
    """Vectors [queries, dim] and [documents, dim] whose inner products are the scores, or None if there are none such.

    >>> inner_product_vectors(maxsim, Embeddings(torch.ones(1, 2, 3)), Embeddings(torch.ones(1, 2, 3))) is None
    True
    """
    if scorer is cosine:
        return l2_normalize(_single_vectors(queries)), l2_normalize(_single_vectors(documents))
    return (_single_vectors(queries), _single_vectors(documents)) if scorer is dot else None


def inner_products(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """[rows, dim] and [others, dim] to [rows, others], in the dtype given even under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return torch.mm(left, right.T, out=out)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of score maths: float64 stays, everything else becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _single_vectors(embeddings: Embeddings) -> Tensor:
    """The vectors [rows, dim]. Raises ModelError where a row has several."""
    if embeddings.vectors.ndim != 2:
        raise ModelError(f"cosine and dot take one vector per row, not {tuple(embeddings.vectors.shape)}; use maxsim")
    return at_least_float32(embeddings.vectors)


def _refuse_single(*sides: Embeddings) -> None:
    for side in sides:
        if side.vectors.ndim != 3:
            raise ModelError(f"maxsim takes vectors [rows, tokens, dim], not {tuple(side.vectors.shape)}; use cosine")


def _real_tokens(embeddings: Embeddings) -> Tensor:
    """Bool [rows, tokens], True for real tokens."""
    if embeddings.mask is not None:
        return embeddings.mask
    return torch.ones(embeddings.vectors.shape[:2], dtype=torch.bool, device=embeddings.vectors.device)


def l2_normalize(vectors: Tensor) -> Tensor:
    """Vectors [..., dim] at length 1. Zeros stay zeros; a plain division would give them a gradient of 1e12 or NaN."""
    lengths = vectors.norm(dim=-1, keepdim=True)  # [..., 1]
    zero = lengths == 0  # NaN is no zero: it must reach the loss
    # The inner `where` keeps the division finite, since the outer one would multiply its gradient of NaN by 0.
    return torch.where(zero, 0, vectors / torch.where(zero, 1, lengths))


@dataclass(frozen=True)
class _RowsByLength:
    """The rows of one side that have real tokens, the shortest first: a jagged tensor's lengths and offsets.

    numbers: of the rows among all, lengths: in real tokens, int64 [rows]. real: int64 [real tokens], the numbers of all
    real tokens among all tokens [all rows * tokens], in the rows' own order; offsets: int64 [rows], where a row's first
    token stands in `real`.
    """

    numbers: Tensor
    lengths: Tensor
    offsets: Tensor
    real: Tensor


@dataclass(frozen=True)
class _Bucket:
    """Rows `start` to `stop` of a side's `_RowsByLength`, which make one tile; the longest has `longest` tokens."""

    start: int
    stop: int
    longest: int

    @property
    def tokens(self) -> int:
        return max(1, (self.stop - self.start) * self.longest)


def _rows_by_length(embeddings: Embeddings) -> _RowsByLength:
    real = _real_tokens(embeddings)  # [all rows, tokens]
    lengths = real.sum(dim=1)  # [all rows]
    numbers = lengths.argsort(stable=True)
    numbers = numbers[lengths[numbers] > 0]  # [rows]
    offsets = lengths.cumsum(0) - lengths  # [all rows]
    return _RowsByLength(numbers, lengths[numbers], offsets[numbers], real.flatten().nonzero().squeeze(1))


def _buckets(rows: _RowsByLength, tokens: int) -> list[_Bucket]:
    """Rows in buckets of at most so many tokens, padding included, and of at least one row. At least one bucket."""
    buckets, start = [], 0
    lengths = rows.lengths.tolist()  # ascending, so that the row after a bucket is longer than all in it
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or (stop + 1 - start) * lengths[stop] > tokens:
            buckets.append(_Bucket(start, stop, lengths[stop - 1]))
            start = stop
    return buckets or [_Bucket(0, 0, 1)]  # of no rows, so that there is a tile, and a graph


def _tiles(embeddings: Embeddings, rows: _RowsByLength, buckets: Sequence[_Bucket], *, zeros: bool) -> Iterator[Tensor]:
    """The vectors of each bucket, [rows, longest, dim], padded with zeros or with each row's last real token."""
    for bucket, tokens in zip(buckets, _tokens(embeddings, rows, buckets), strict=True):
        tile = at_least_float32(tokens).view(bucket.stop - bucket.start, bucket.longest, tokens.shape[1])
        yield tile.masked_fill(_padding(rows, bucket)[:, :, None], 0) if zeros else tile


def _tokens(embeddings: Embeddings, rows: _RowsByLength, buckets: Sequence[_Bucket]) -> Iterable[Tensor]:
    """The vectors of each bucket's tokens, [rows * longest, dim], padded with each row's last real token."""
    vectors = embeddings.vectors.flatten(0, 1)  # [all rows * tokens, dim]
    if embeddings.mask is None:  # all of one length, so still in their order
        return torch.split(vectors, [(bucket.stop - bucket.start) * bucket.longest for bucket in buckets])
    indices = (_token_numbers(rows, bucket) for bucket in buckets)
    if not (torch.is_grad_enabled() and vectors.requires_grad):
        return (vectors.index_select(0, index) for index in indices)
    # One selection for all: the gradient of a selection is as large as what it selects from.
    every = list(indices)
    return torch.split(vectors.index_select(0, torch.cat(every)), [len(index) for index in every])


def _token_numbers(rows: _RowsByLength, bucket: _Bucket) -> Tensor:
    """Int64 [rows * longest]: for each token of a bucket's tile its number among all tokens."""
    lengths = rows.lengths[bucket.start : bucket.stop, None]
    offsets = rows.offsets[bucket.start : bucket.stop, None]  # [rows, 1]
    steps = torch.arange(bucket.longest, device=lengths.device)
    # Past a row's end the minimum stays at its last real token: that is the padding.
    return rows.real[(offsets + torch.minimum(steps, lengths - 1)).flatten()]


def _padding(rows: _RowsByLength, bucket: _Bucket) -> Tensor:
    """Bool [rows, longest]: True where a bucket's tile is padding."""
    steps = torch.arange(bucket.longest, device=rows.lengths.device)
    return steps >= rows.lengths[bucket.start : bucket.stop, None]


class _TileScores(torch.autograd.Function):
    """Scores [queries, documents] of two tiles [queries, tokens, dim] and [documents, tokens, dim].

    `buffer` [products at most] is where their products are written. The gradient of a maximum goes to the token that
    was best, which is all that is kept for it, int32 [queries * tokens, documents], and not the products:

        best[q, i, n] = argmax over j of queries[q, i] @ documents[n, j]
        dL/dqueries[q, i]   = sum over n of               g[q, n] * documents[n, best[q, i, n]]
        dL/ddocuments[n, j] = sum over q, i with best = j of g[q, n] * queries[q, i]
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, buffer: Tensor) -> Tensor:  # Any: torch exports no type
        query_tokens, document_tokens = queries.flatten(0, 1), documents.flatten(0, 1)  # [rows * tokens, dim] each
        products = buffer[: len(query_tokens) * len(document_tokens)].view(len(query_tokens), len(document_tokens))
        inner_products(query_tokens, document_tokens, out=products)
        products = products.view(len(products), *documents.shape[:2])  # [queries * tokens, documents, tokens]
        if any(ctx.needs_input_grad):
            best, places = products.max(dim=2)  # [queries * tokens, documents] each
            ctx.save_for_backward(queries, documents, places.int())  # half the memory of int64
        else:
            best = products.amax(dim=2)
        scores: Tensor = best.view(*queries.shape[:2], len(documents)).sum(dim=1)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, documents, places = ctx.saved_tensors
        per_token = gradient.repeat_interleave(queries.shape[1], dim=0)[:, :, None]  # [queries * tokens, documents, 1]
        # Each score's gradient at the place of its best token, and 0 elsewhere: both sums are then matrix products.
        weights = gradient.new_zeros(*places.shape, documents.shape[1]).scatter_(
            2, places.long()[:, :, None], per_token
        )
        weights = weights.flatten(1)  # [queries * tokens, documents * tokens]
        return (  # `inner_products` transposes its second argument: these are weights @ documents, weights.T @ queries
            inner_products(weights, documents.flatten(0, 1).T).view_as(queries),
            inner_products(weights.T, queries.flatten(0, 1).T).view_as(documents),
            None,
        )
