"""Scores of queries against documents, [queries, documents]: bigger is better, float32 (float64 stays float64).

Padding tokens are masked, never scored.

Late interaction compares every query token with every document token. The products are made in tiles and reduced at
once, so that [queries, tokens, documents, tokens] never exists:

    rows in order of length, real tokens only            _rows_by_length
    tiles of rows alike in length                        _groups, _tiles
    a tile of queries x a tile of documents -> scores    _TileScores
    all of them, in the order given                      maxsim

In a tile, a document is filled up with its last real token, which changes no maximum, and a query with zeros, which add
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
    return inner_products(unit(_single(queries)), unit(_single(documents)))


def dot(queries: Embeddings, documents: Embeddings) -> Tensor:
    """Inner product of vectors [queries, dim] and [documents, dim].

    >>> dot(Embeddings(torch.tensor([[3.0, 4.0]])), Embeddings(torch.tensor([[1.0, 0.0], [0.0, 2.0]])))
    tensor([[3., 8.]])
    """
    return inner_products(_single(queries), _single(documents))


def maxsim(queries: Embeddings, documents: Embeddings) -> Tensor:
    """Late interaction: each query token's best inner product with a document token, summed over the query's tokens.

    Vectors [queries, tokens, dim] and [documents, tokens, dim]. A document without real tokens scores 0, and so does
    a query without any. (Khattab and Zaharia 2020, https://arxiv.org/abs/2004.12832)

    >>> query = Embeddings(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    >>> maxsim(query, Embeddings(torch.tensor([[[1.0, 0.5], [0.5, 0.8]]]))).item()
    1.7999999523162842
    """
    _refuse_single(queries, documents)
    tile = _CPU_TILE if queries.vectors.device.type == "cpu" else _ACCELERATOR_TILE
    query_rows, document_rows = _rows_by_length(queries), _rows_by_length(documents)
    query_groups = _groups(query_rows, math.isqrt(tile))
    query_tokens = max(group.tokens for group in query_groups)
    document_groups = _groups(document_rows, tile // query_tokens)
    query_tiles = list(_tiles(queries, query_rows, query_groups, zeros=True))
    # Room for the products of one tile, written again and again: new room for each would leave the heap full of holes.
    room = query_tiles[0].new_empty(query_tokens * max(group.tokens for group in document_groups))
    strips = [
        torch.cat([_TileScores.apply(query_tile, document_tile, room) for query_tile in query_tiles])
        for document_tile in _tiles(documents, document_rows, document_groups, zeros=False)
    ]
    scores = torch.cat(strips, dim=1)
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
    """Vectors [queries, dim] and [documents, dim] whose inner products are the scores; None where there are none such.

    >>> inner_product_vectors(maxsim, Embeddings(torch.ones(1, 2, 3)), Embeddings(torch.ones(1, 2, 3))) is None
    True
    """
    if scorer is cosine:
        return unit(_single(queries)), unit(_single(documents))
    return (_single(queries), _single(documents)) if scorer is dot else None


def inner_products(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """[rows, dim] and [others, dim] to [rows, others], in the dtype given even under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return torch.mm(left, right.T, out=out)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of score maths: float64 stays, everything else becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _single(embeddings: Embeddings) -> Tensor:
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


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1. Zeros stay zeros; a plain division would give them a gradient of 1e12 or NaN."""
    lengths = vectors.norm(dim=-1, keepdim=True)
    zero = lengths == 0  # NaN is no zero: it must reach the loss
    return torch.where(zero, 0, vectors / torch.where(zero, 1, lengths))


@dataclass(frozen=True)
class _Rows:
    """The rows of one side that have real tokens, the shortest first.

    numbers, lengths, first: int64 [rows]; `first` is the place in `places` of a row's first token.
    places: int64 [real tokens], where each real token lies among all tokens [all rows * tokens].
    """

    numbers: Tensor
    lengths: Tensor
    first: Tensor
    places: Tensor


@dataclass(frozen=True)
class _Group:
    """Rows `start` to `stop` of a side's `_Rows`, which make one tile of `longest` tokens."""

    start: int
    stop: int
    longest: int

    @property
    def tokens(self) -> int:
        return max(1, (self.stop - self.start) * self.longest)


def _rows_by_length(embeddings: Embeddings) -> _Rows:
    real = _real_tokens(embeddings)
    lengths = real.sum(dim=1)
    numbers = lengths.argsort(stable=True)
    numbers = numbers[lengths[numbers] > 0]
    first = lengths.cumsum(0) - lengths
    return _Rows(numbers, lengths[numbers], first[numbers], real.flatten().nonzero().squeeze(1))


def _groups(rows: _Rows, tokens: int) -> list[_Group]:
    """Rows in groups of at most so many tokens, padding included, and of at least one row. Never no group."""
    groups, start = [], 0
    lengths = rows.lengths.tolist()
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or (stop + 1 - start) * lengths[stop] > tokens:
            groups.append(_Group(start, stop, lengths[stop - 1]))
            start = stop
    return groups or [_Group(0, 0, 1)]


def _tiles(embeddings: Embeddings, rows: _Rows, groups: Sequence[_Group], *, zeros: bool) -> Iterator[Tensor]:
    """The vectors of each group, [rows, longest, dim], filled up with zeros or with each row's last real token."""
    for group, tokens in zip(groups, _tokens(embeddings, rows, groups), strict=True):
        tile = at_least_float32(tokens).view(group.stop - group.start, group.longest, tokens.shape[1])
        yield tile.masked_fill(_padding(rows, group)[:, :, None], 0) if zeros else tile


def _tokens(embeddings: Embeddings, rows: _Rows, groups: Sequence[_Group]) -> Iterable[Tensor]:
    """The vectors of each group's tokens, [rows * longest, dim]."""
    vectors = embeddings.vectors.flatten(0, 1)  # [all rows * tokens, dim]
    if embeddings.mask is None:  # all of one length, so still in their order
        return torch.split(vectors, [(group.stop - group.start) * group.longest for group in groups])
    places = (_places(rows, group) for group in groups)
    if not (torch.is_grad_enabled() and vectors.requires_grad):
        return (vectors.index_select(0, some) for some in places)
    # One selection for all: the gradient of a selection is as large as what it selects from.
    every = list(places)
    return torch.split(vectors.index_select(0, torch.cat(every)), [len(some) for some in every])


def _places(rows: _Rows, group: _Group) -> Tensor:
    """Int64 [rows * longest]: the token that stands at each place of a group's tile."""
    lengths, first = (tensor[group.start : group.stop, None] for tensor in (rows.lengths, rows.first))
    steps = torch.arange(group.longest, device=lengths.device)
    return rows.places[(first + torch.minimum(steps, lengths - 1)).flatten()]


def _padding(rows: _Rows, group: _Group) -> Tensor:
    """Bool [rows, longest]: where a group's tile is filled up."""
    steps = torch.arange(group.longest, device=rows.lengths.device)
    return steps >= rows.lengths[group.start : group.stop, None]


class _TileScores(torch.autograd.Function):
    """Scores [queries, documents] of two tiles [queries, tokens, dim] and [documents, tokens, dim].

    `room` [numbers] is where their products are written. For the gradient it keeps which token was best, int32
    [queries * tokens, documents], not the products.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, room: Tensor) -> Tensor:  # Any: torch exports no type
        query_tokens, document_tokens = queries.flatten(0, 1), documents.flatten(0, 1)
        products = room[: len(query_tokens) * len(document_tokens)].view(len(query_tokens), len(document_tokens))
        inner_products(query_tokens, document_tokens, out=products)
        products = products.view(len(products), *documents.shape[:2])  # [queries * tokens, documents, tokens]
        if any(ctx.needs_input_grad):
            best, places = products.max(dim=2)
            ctx.save_for_backward(queries, documents, places.int())
        else:
            best = products.amax(dim=2)
        scores: Tensor = best.view(*queries.shape[:2], len(documents)).sum(dim=1)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, documents, places = ctx.saved_tensors
        per_token = gradient.repeat_interleave(queries.shape[1], dim=0)[:, :, None]  # [queries * tokens, documents, 1]
        weights = gradient.new_zeros(*places.shape, documents.shape[1]).scatter_(
            2, places.long()[:, :, None], per_token
        )
        weights = weights.flatten(1)  # [queries * tokens, documents * tokens]
        return (
            inner_products(weights, documents.flatten(0, 1).T).view_as(queries),
            inner_products(weights.T, queries.flatten(0, 1).T).view_as(documents),
            None,
        )
