"""Confidence intervals of figures: percentile bootstrap over groups of queries, paired between two models.

Queries of one group (captions of one picture, pictures of one class) are not independent, so whole groups are drawn,
with replacement and as many as there are. Base and tuned model are measured on the same resamples; the interval of
their difference is therefore narrower than the two intervals suggest. (Efron and Tibshirani 1993, chapter 13)
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vembed.evaluation.metrics import PerQuery

Array = NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)

_PERCENTILES = (2.5, 97.5)
_COUNTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a figure or of a difference."""

    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """True if the interval holds no difference at all."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples: counts, float64 [samples, groups], how often each group was drawn; query_groups, int64
    [queries], each query's group."""

    counts: Array
    query_groups: NDArray[np.int64]

    def means(self, values: PerQuery) -> Array:
        """The mean over queries in each resample, [samples]."""
        sums = np.bincount(self.query_groups, weights=values, minlength=self.counts.shape[1])
        sizes = np.bincount(self.query_groups, minlength=self.counts.shape[1])
        return np.asarray((self.counts @ sums) / (self.counts @ sizes))


def intervals(
    per_query: Mapping[Name, PerQuery], groups: NDArray[np.int64], *, samples: int, seed: int
) -> dict[Name, Interval]:
    """The interval of each mean over queries. Empty without resamples, or when all queries are of one group."""
    means: dict[Name, list[Array]] = {name: [] for name in per_query}
    for resamples in _resamples(groups, samples, seed):
        for name, values in per_query.items():
            means[name].append(resamples.means(values))
    return {name: _interval(np.concatenate(parts)) for name, parts in means.items() if parts}


def _resamples(groups: NDArray[np.int64], samples: int, seed: int) -> Iterator[Resamples]:
    """All resamples, some at a time; each depends on the seed and its number alone."""
    num_groups = len(np.unique(groups))
    query_groups = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    if num_groups < 2:
        return
    generator = np.random.default_rng(seed)
    block = max(1, _COUNTS_AT_ONCE // num_groups)
    for start in range(0, samples, block):
        rows = [_resample(generator, num_groups) for _ in range(min(block, samples - start))]
        yield Resamples(np.stack(rows), query_groups)


def _resample(generator: np.random.Generator, num_groups: int) -> Array:
    drawn = generator.integers(num_groups, size=num_groups)
    return np.bincount(drawn, minlength=num_groups).astype(np.float64)


def _interval(means: Array) -> Interval:
    low, high = np.percentile(means, _PERCENTILES)
    return Interval(float(low), float(high))
