"""Queries to look at, with their best documents under each model: the biggest wins, the biggest losses, random ones.

A win is a query whose first relevant document moved up, by the difference of its reciprocal ranks. Every set shows as
many; a set without enough wins or losses shows more random ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vembed.evaluation.comparison import Comparison, SetComparison
from vembed.evaluation.rendering.thumbnails import thumbnail_uri
from vembed.types import Item


@dataclass(frozen=True)
class ShownItem:
    """One item to show. `relevant`: it is relevant to the query."""

    text: str | None
    images: tuple[str, ...]
    relevant: bool = False


@dataclass(frozen=True)
class ShownResults:
    """The best documents of one model for a query, best first, and the rank of its first relevant document."""

    label: str
    first_rank: int
    items: tuple[ShownItem, ...]


@dataclass(frozen=True)
class ShownQuery:
    """One query: its set, why it is shown ("win", "loss", "random"), what was wanted and what was found."""

    set_name: str
    kind: str
    query: ShownItem
    wanted: ShownItem
    num_relevant: int
    results: tuple[ShownResults, ...]


def choose_shown_queries(comparison: Comparison, size: int) -> tuple[ShownQuery, ...]:
    """About `size` queries over all sets. Raises DataError when a picture cannot be read any more."""
    per_set = -(-size // len(comparison.sets))
    return tuple(
        shown
        for number, one in enumerate(comparison.sets)
        for shown in _of_set(one, comparison.labels, count=per_set, seed=number)
    )


def choose_queries(gains: NDArray[np.float64], count: int, seed: int = 0) -> dict[int, str]:
    """Query number -> why it is shown: the largest gains, the largest losses, then random ones.

    >>> choose_queries(np.array([0.0, 0.9, -0.5, 0.1, 0.0]), 2)
    {1: 'win', 2: 'loss'}
    """
    share = -(-count // 3)
    order = np.argsort(-gains, kind="stable")
    wins = [int(number) for number in order[:share] if gains[number] > 0]
    losses = [int(number) for number in order[::-1][:share] if gains[number] < 0]
    chosen = dict.fromkeys(wins, "win") | dict.fromkeys(losses, "loss")
    for number in np.random.default_rng(seed).permutation(len(gains)):
        if len(chosen) < count:
            chosen.setdefault(int(number), "random")
    return dict(list(chosen.items())[:count])


def _of_set(one: SetComparison, labels: tuple[str, ...], *, count: int, seed: int) -> Iterator[ShownQuery]:
    gains = 1 / one.results[-1].first_ranks - 1 / one.results[0].first_ranks
    starts = (one.retrieval_set.relevant.counts.cumsum(0) - one.retrieval_set.relevant.counts).tolist()
    for query, kind in choose_queries(gains, count, seed).items():
        num_relevant = int(one.retrieval_set.relevant.counts[query])
        relevant = one.retrieval_set.relevant.values[starts[query] : starts[query] + num_relevant].tolist()
        yield ShownQuery(
            set_name=one.retrieval_set.name,
            kind=kind,
            query=_shown_item(one.retrieval_set.queries[query]),
            wanted=_shown_item(one.retrieval_set.documents[relevant[0]], relevant=True),
            num_relevant=num_relevant,
            results=tuple(_shown_results(one, labels, query, set(relevant))),
        )


def _shown_results(
    one: SetComparison, labels: tuple[str, ...], query: int, relevant: set[int]
) -> Iterator[ShownResults]:
    for label, result in zip(labels, one.results, strict=True):
        found = [number for number in result.hits.documents[query].tolist() if number >= 0]
        items = [_shown_item(one.retrieval_set.documents[number], relevant=number in relevant) for number in found]
        yield ShownResults(label, int(result.first_ranks[query]), tuple(items))


def _shown_item(item: Item, *, relevant: bool = False) -> ShownItem:
    return ShownItem(item.text, tuple(thumbnail_uri(source) for source in item.images), relevant)
