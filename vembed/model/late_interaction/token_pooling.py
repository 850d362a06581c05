"""Fewer vectors for a document: keep the tokens most similar to its summary token, pool similar ones.

Token pooling is hierarchical clustering by Ward's criterion over cosine distances, exact, by nearest-neighbour chains
(Müllner 2011, https://arxiv.org/abs/1109.2378): the cost is tokens squared. Each cluster becomes its tokens' mean.
Clusters are found without a gradient; the means pass it on. (Clavié, Chaffin and Adams 2024,
https://arxiv.org/abs/2409.14683)
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vembed.model.spec import ModelSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reduction:
    """Pruning and pooling of a document's token vectors; None: no such limit.

    topk: tokens kept at most. factor, most, distance: tokens are merged until one in `factor` and no more than `most`
    are left, but none that are further apart than `distance`. protected: first tokens, never merged. normalize: means
    get length 1.
    """

    topk: int | None = None
    factor: float | None = None
    most: int | None = None
    distance: float | None = None
    protected: int = 0
    normalize: bool = True

    @classmethod
    def of(cls, spec: ModelSpec) -> "Reduction":
        """The reduction of a spec, in which 0 means no limit too."""
        late = spec.late
        return cls(
            topk=spec.topk_tokens or None,
            factor=spec.pool_factor or None,
            most=spec.document_tokens or None,
            distance=spec.distance_threshold or None,
            protected=late.protected_tokens if late else 0,
            normalize=late.normalizes_pools if late else True,
        )

    def __call__(self, vectors: Tensor, similarity: Tensor) -> Tensor:
        """Vectors [tokens, dim] and the similarity [tokens] of each to the summary token -> [fewer tokens, dim]."""
        if self.topk is not None and self.topk < len(vectors):
            vectors = vectors[similarity.detach().topk(self.topk).indices.sort().values]
        first, rest = vectors[: self.protected], vectors[self.protected :]
        num_clusters = self._num_clusters(len(rest), len(first))
        if num_clusters >= len(rest):
            return vectors
        pooled = mean_by_label(rest, cluster(rest, num_clusters, self.distance))
        if not self.normalize:
            return torch.cat([first, pooled])
        return torch.cat([first, torch.nn.functional.normalize(pooled, dim=-1)])

    def _num_clusters(self, tokens: int, protected: int) -> int:
        """The number of clusters of the tokens that are not protected, before `distance` prevents merges."""
        limits = [tokens]
        if self.factor is not None:
            limits.append(int(tokens // self.factor))
        if self.most is not None:
            limits.append(self.most - protected)
        if len(limits) == 1 and self.distance is not None:
            limits.append(1)
        return max(1, min(limits))


def mean_by_label(vectors: Tensor, labels: Tensor) -> Tensor:
    """The mean of the vectors [tokens, dim] of each label, int64 [tokens] from 0 -> [labels, dim]."""
    count = torch.bincount(labels).to(vectors)
    total = vectors.new_zeros(len(count), vectors.shape[1]).index_add(0, labels, vectors)
    return total / count[:, None]


def cluster(vectors: Tensor, num_clusters: int, distance: float | None = None) -> Tensor:
    """The cluster of each of the vectors [tokens, dim], int64 [tokens], numbered in the order of their first tokens.

    Ward's criterion over cosine distances of unit vectors; merges until num_clusters are left or the next two are
    further apart than `distance`.

    >>> cluster(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.995, 0.1]]), 2)
    tensor([0, 1, 0])
    """
    rows = vectors.detach().float().cpu().numpy()
    squared = np.clip(1 - rows @ rows.T, 0, 2).astype(np.float64) ** 2
    heights, pairs = _ward(squared)
    order = np.argsort(heights, kind="stable")[: len(rows) - num_clusters]
    if distance is not None:
        order = order[heights[order] <= distance**2]
    return torch.from_numpy(_labels(len(rows), pairs[order])).to(vectors.device)


def _ward(squared: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """All merges of a full dendrogram: squared heights [tokens - 1], and a token of either cluster [tokens - 1, 2].

    `squared`: squared distances [tokens, tokens], overwritten.
    """
    tokens = len(squared)
    np.fill_diagonal(squared, np.inf)
    sizes = np.ones(tokens)
    heights, pairs = np.empty(tokens - 1), np.empty((tokens - 1, 2), dtype=np.int64)
    chain: list[int] = []
    for step in range(tokens - 1):
        if not chain:
            chain.append(int(sizes.argmax() if step == 0 else np.flatnonzero(sizes)[0]))
        left, right = _nearest_pair(squared, chain)
        heights[step], pairs[step] = squared[left, right], (left, right)
        _merge(squared, sizes, left, right)
    return heights, pairs


def _nearest_pair(squared: Floats, chain: list[int]) -> tuple[int, int]:
    """Follow nearest neighbours from the end of the chain until two are each other's; they leave the chain."""
    while True:
        last = chain[-1]
        nearest = int(squared[last].argmin())
        if len(chain) > 1 and squared[last, chain[-2]] <= squared[last, nearest]:
            chain.pop()
            return last, chain.pop()
        chain.append(nearest)


def _merge(squared: Floats, sizes: Floats, left: int, right: int) -> None:
    """Merge `left` into `right`, in place, by the formula of Lance and Williams."""
    apart, both = squared[left, right], sizes[left] + sizes[right]
    with np.errstate(invalid="ignore"):  # merged clusters are infinitely far
        merged = (sizes[left] + sizes) * squared[left] + (sizes[right] + sizes) * squared[right] - sizes * apart
        merged /= both + sizes
    merged[[left, right]] = np.inf
    merged[sizes == 0] = np.inf
    squared[right], squared[:, right] = merged, merged
    squared[left], squared[:, left] = np.inf, np.inf
    sizes[left], sizes[right] = 0, both


def _labels(tokens: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The cluster of each token after these merges, numbered in the order of their first tokens."""
    parent = list(range(tokens))

    def root(token: int) -> int:
        while parent[token] != token:
            parent[token] = parent[parent[token]]
            token = parent[token]
        return token

    for left, right in pairs.tolist():
        parent[root(left)] = root(right)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(token), len(numbers)) for token in range(tokens)], dtype=np.int64)
