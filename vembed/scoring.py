"""Scores of queries against documents, [queries, documents]: bigger is better, float32 (float64 stays float64).

Padding tokens are masked, never scored.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vembed.errors import ModelError
from vembed.registry import Registry
from vembed.types import Embeddings

Scorer = Callable[[Embeddings, Embeddings], Tensor]


def cosine(queries: Embeddings, documents: Embeddings) -> Tensor:
    """Cosine of vectors [queries, dim] and [documents, dim]; a vector of zeros scores 0, with gradient 0.

    >>> cosine(Embeddings(torch.tensor([[3.0, 4.0]])), Embeddings(torch.tensor([[1.0, 0.0], [0.0, 2.0]])))
    tensor([[0.6000, 0.8000]])
    """
    return _products(_unit(_single(queries)), _unit(_single(documents)))


def dot(queries: Embeddings, documents: Embeddings) -> Tensor:
    """Inner product of vectors [queries, dim] and [documents, dim].

    >>> dot(Embeddings(torch.tensor([[3.0, 4.0]])), Embeddings(torch.tensor([[1.0, 0.0], [0.0, 2.0]])))
    tensor([[3., 8.]])
    """
    return _products(_single(queries), _single(documents))


def maxsim(queries: Embeddings, documents: Embeddings) -> Tensor:
    """Late interaction: each query token's best inner product with a document token, summed over the query's tokens.

    Vectors [queries, tokens, dim] and [documents, tokens, dim]. A document without real tokens scores 0, and so does
    a query without any. (Khattab and Zaharia 2020, https://arxiv.org/abs/2004.12832)

    >>> query = Embeddings(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    >>> maxsim(query, Embeddings(torch.tensor([[[1.0, 0.5], [0.5, 0.8]]]))).item()
    1.7999999523162842
    """
    left, right = _several(queries), _several(documents)
    scores = _products(left.flatten(0, 1), right.flatten(0, 1))
    scores = scores.view(*left.shape[:2], *right.shape[:2])  # [queries, tokens, documents, tokens]
    real = _real_tokens(documents)
    best = scores.masked_fill(~real, float("-inf")).amax(dim=3)  # [queries, tokens, documents]
    scored = _real_tokens(queries)[:, :, None] & real.any(dim=1)
    return torch.where(scored, best, 0).sum(dim=1)


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


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of score maths: float64 stays, everything else becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _single(embeddings: Embeddings) -> Tensor:
    if embeddings.vectors.ndim != 2:
        raise ModelError(f"cosine and dot take one vector per row, not {tuple(embeddings.vectors.shape)}; use maxsim")
    return at_least_float32(embeddings.vectors)


def _several(embeddings: Embeddings) -> Tensor:
    if embeddings.vectors.ndim != 3:
        raise ModelError(f"maxsim takes vectors [rows, tokens, dim], not {tuple(embeddings.vectors.shape)}; use cosine")
    return at_least_float32(embeddings.vectors)


def _real_tokens(embeddings: Embeddings) -> Tensor:
    """Bool [rows, tokens], True for real tokens."""
    if embeddings.mask is not None:
        return embeddings.mask
    return torch.ones(embeddings.vectors.shape[:2], dtype=torch.bool, device=embeddings.vectors.device)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """[rows, dim] and [others, dim] to [rows, others], in the dtype given even under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.T


def _unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1. Zeros stay zeros; a plain division would give them a gradient of 1e12 or NaN."""
    lengths = vectors.norm(dim=-1, keepdim=True)
    zero = lengths == 0  # NaN is no zero: it must reach the loss
    return torch.where(zero, 0, vectors / torch.where(zero, 1, lengths))
