"""Retrieval metrics of single queries, in [0, 1], from the ranks of their relevant documents.

For a query with m relevant documents at ranks r_1 < ... < r_m:

| metric | formula |
|---|---|
| `recall@k` | share of the relevant documents found: (number of r_i <= k) / m. With m > k it cannot exceed k / m |
| `hit_rate@k` | 1 if r_1 <= k, else 0 |
| `ndcg@k` | sum of 1 / log2(1 + r_i) over r_i <= k, over the same sum for the ranks 1 ... min(m, k) |
| `mrr` | 1 / r_1, at any depth |
| `map` | mean over i of i / r_i, at any depth |

A data set's figure is the mean over its queries. Graded relevance is not part of this: a document is relevant or not.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vembed.evaluation.ranks import RelevantRanks

PerQuery = NDArray[np.float64]  # [queries]

CutMetric = Callable[[RelevantRanks, int], PerQuery]
DeepMetric = Callable[[RelevantRanks], PerQuery]


def recall_at(ranks: RelevantRanks, k: int) -> PerQuery:
    """Share of each query's relevant documents that stand at rank k or better.

    >>> recall_at(RelevantRanks(np.array([1, 12]), np.array([2])), 10)
    array([0.5])
    """
    return _sum_per_query(ranks, (ranks.values <= k).astype(np.float64)) / ranks.counts


def hit_rate_at(ranks: RelevantRanks, k: int) -> PerQuery:
    """1 for each query with a relevant document at rank k or better."""
    return (_sum_per_query(ranks, (ranks.values <= k).astype(np.float64)) > 0).astype(np.float64)


def ndcg_at(ranks: RelevantRanks, k: int) -> PerQuery:
    """Discounted gain of the first k ranks over the best possible one (Järvelin and Kekäläinen 2002).

    >>> ndcg_at(RelevantRanks(np.array([1, 3]), np.array([2])), 10).round(4)  # (1 + 1/2) / (1 + 1/log2(3))
    array([0.9197])
    """
    gains = np.where(ranks.values <= k, 1 / np.log2(1.0 + ranks.values), 0.0)
    ideal = np.where(ranks.positions <= k, 1 / np.log2(1.0 + ranks.positions), 0.0)
    return _sum_per_query(ranks, gains) / _sum_per_query(ranks, ideal)


def reciprocal_rank(ranks: RelevantRanks) -> PerQuery:
    """1 / rank of each query's first relevant document."""
    return _sum_per_query(ranks, np.where(ranks.positions == 1, 1 / ranks.values, 0.0))


def average_precision(ranks: RelevantRanks) -> PerQuery:
    """Mean precision at the ranks of each query's relevant documents.

    >>> average_precision(RelevantRanks(np.array([1, 3]), np.array([2]))).round(4)  # (1/1 + 2/3) / 2
    array([0.8333])
    """
    return _sum_per_query(ranks, ranks.positions / ranks.values) / ranks.counts


CUT_METRICS: Mapping[str, CutMetric] = {"recall": recall_at, "hit_rate": hit_rate_at, "ndcg": ndcg_at}
DEEP_METRICS: Mapping[str, DeepMetric] = {"mrr": reciprocal_rank, "map": average_precision}


def measure_queries(ranks: RelevantRanks, cut_offs: Sequence[int]) -> dict[str, PerQuery]:
    """Every metric of every query: "recall@1" and so on for each cut-off, then "mrr" and "map"."""
    cut = {f"{name}@{k}": metric(ranks, k) for name, metric in CUT_METRICS.items() for k in cut_offs}
    return cut | {name: metric(ranks) for name, metric in DEEP_METRICS.items()}


def _sum_per_query(ranks: RelevantRanks, values: NDArray[np.float64]) -> PerQuery:
    sums = np.bincount(ranks.queries, weights=values, minlength=len(ranks.counts))
    return sums.astype(np.float64)
