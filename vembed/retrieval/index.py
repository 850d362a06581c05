"""Exact search: every query against every document, in strips of queries, so that memory stays bounded.

    strip of queries x blocks of documents -> scores [strip, documents]     score_strips
    excluded documents become -inf                                          (a query's own picture is no result)
    the best k of each row, equal scores in document order                  best_documents

Evaluation measures on the same strips that search takes its results from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.errors import UsageError
from vembed.grad_cache.cachex.tree_utils import num_rows, pad_tokens, take_rows
from vembed.scoring import Scorer
from vembed.types import Embeddings, Ragged
from vembed.utils.ragged import row_numbers

NO_DOCUMENT = -1


@dataclass(frozen=True)
class Hits:
    """The best documents of each query, best first.

    documents: int64 [queries, k], NO_DOCUMENT where a query has fewer than k. scores: float32 [queries, k], -inf there.
    """

    documents: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Budget:
    """The numbers held at once: `scores` of a strip, and `products` of single vectors while they are computed.

    Of Ragged tokens, as many numbers of documents are padded at once as there may be products.
    """

    scores: int = 2**23
    products: int = 2**23


def search(
    queries: Embeddings | Ragged,
    documents: Embeddings | Ragged,
    scorer: Scorer,
    *,
    k: int,
    excluded: Ragged | None = None,
    budget: Budget | None = None,
) -> Hits:
    """The k best documents of every query, without those that are `excluded` (document numbers per query).

    Ragged: tokens without padding; strips and blocks of them are padded in turn.

    >>> from vembed.scoring import cosine
    >>> corpus = Embeddings(torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 2.0]]))
    >>> search(Embeddings(torch.tensor([[0.0, 3.0]])), corpus, cosine, k=2).documents
    tensor([[0, 2]])
    """
    if k < 1:
        raise UsageError(f"k is {k}; ask for at least one document")
    strips = score_strips(queries, documents, scorer, excluded=excluded, budget=budget)
    hits = [best_documents(scores, k) for _, scores in strips]
    return Hits(torch.cat([hit.documents for hit in hits]), torch.cat([hit.scores for hit in hits]))


def score_strips(
    queries: Embeddings | Ragged,
    documents: Embeddings | Ragged,
    scorer: Scorer,
    *,
    excluded: Ragged | None = None,
    budget: Budget | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Strip by strip, the number of its first query and its scores [strip, documents]; excluded documents are -inf."""
    budget = budget or Budget()
    num_queries, num_documents = num_rows(queries), num_rows(documents)
    rows = max(1, budget.scores // max(1, num_documents))
    for start in range(0, max(1, num_queries), rows):
        strip = _padded(take_rows(queries, start, min(start + rows, num_queries)))
        scores = _scores(strip, documents, scorer, budget.products)  # [strip, documents]
        if excluded is not None:
            own = take_rows(excluded, start, min(start + rows, num_queries))
            scores[row_numbers(own), own.values] = float("-inf")
        yield start, scores


def best_documents(scores: Tensor, k: int) -> Hits:
    """The k best of each row of scores [queries, documents]; equal scores keep the order of the documents.

    >>> best_documents(torch.tensor([[0.5, 0.9, 0.5, 0.5]]), k=3).documents
    tensor([[1, 0, 2]])
    """
    kept = min(k, scores.shape[1])
    if kept == 0:
        return _padded_hits(scores[:, :0], torch.zeros(len(scores), 0, dtype=torch.int64), k)
    threshold = scores.topk(kept, dim=1).values[:, -1:]  # [queries, 1]
    above = scores > threshold
    tied = scores == threshold
    room = kept - above.sum(dim=1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= room))
    columns = chosen.nonzero()[:, 1].view(len(scores), kept)  # in document order
    best, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return _padded_hits(best, columns.gather(1, order), k)


def _padded(rows: Embeddings | Ragged) -> Embeddings:
    return pad_tokens(rows) if isinstance(rows, Ragged) else rows


def _scores_of_tokens(strip: Embeddings, documents: Ragged, scorer: Scorer, numbers: int) -> Tensor:
    """Scores [strip, documents], in blocks of documents that hold at most so many numbers when they are padded."""
    scores = strip.vectors.new_empty(num_rows(strip), num_rows(documents))
    for start, stop in _blocks(documents.counts.tolist(), numbers // max(1, documents.values.shape[-1])):
        scores[:, start:stop] = scorer(strip, pad_tokens(take_rows(documents, start, stop)))
    return scores


def _blocks(counts: Sequence[int], tokens: int) -> Iterator[tuple[int, int]]:
    """First row and row after the last of blocks of at most so many tokens, padding counted; a row at least.

    >>> list(_blocks([2, 2, 9, 1, 1], tokens=10))
    [(0, 2), (2, 3), (3, 5)]
    """
    start, longest = 0, 0
    for row, count in enumerate(counts):
        longest = max(longest, count)
        if row > start and longest * (row + 1 - start) > tokens:
            yield start, row
            start, longest = row, count
    if counts:
        yield start, len(counts)


def _scores(strip: Embeddings, documents: Embeddings | Ragged, scorer: Scorer, products: int) -> Tensor:
    """Scores [strip, documents]; in blocks of documents, but for tokens that are padded already."""
    if isinstance(documents, Ragged):
        return _scores_of_tokens(strip, documents, scorer, products)
    if documents.vectors.ndim > 2:
        return scorer(strip, documents)  # late interaction makes its own tiles, best from all documents
    num_documents = num_rows(documents)
    scores = strip.vectors.new_empty(num_rows(strip), num_documents)
    block = max(1, products // max(1, num_rows(strip)))
    for start in range(0, num_documents, block):
        stop = min(start + block, num_documents)
        scores[:, start:stop] = scorer(strip, take_rows(documents, start, stop))
    return scores


def _padded_hits(scores: Tensor, documents: Tensor, k: int) -> Hits:
    """Fill up to k columns; what scores -inf is excluded, so no result either."""
    missing = (0, k - scores.shape[1])
    scores = torch.nn.functional.pad(scores, missing, value=float("-inf"))
    documents = torch.nn.functional.pad(documents, missing, value=NO_DOCUMENT)
    return Hits(documents.masked_fill(scores == float("-inf"), NO_DOCUMENT), scores)
