"""Queries to look at, with their best documents under each model: the biggest wins, the biggest losses, random ones.

A win is a query whose first relevant document moved up, by the difference of its reciprocal ranks. Every set shows as
many; a set without enough wins or losses shows more random ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vembed.evaluation.comparison import Comparison, SetComparison
from vembed.evaluation.thumbnails import thumbnail_uri
from vembed.types import Item


@dataclass(frozen=True)
class Tile:
    """One item to show. `right`: it is relevant to the query."""

    text: str | None
    images: tuple[str, ...]
    right: bool = False


@dataclass(frozen=True)
class Strip:
    """What one model found, best first, and the rank of the first relevant document."""

    label: str
    first_rank: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Exhibit:
    """One query: its set, why it is shown ("win", "loss", "random"), what was wanted and what was found."""

    set_name: str
    kind: str
    query: Tile
    wanted: Tile
    num_relevant: int
    strips: tuple[Strip, ...]


def choose_exhibits(comparison: Comparison, size: int) -> tuple[Exhibit, ...]:
    """About `size` queries over all sets. Raises DataError when a picture cannot be read any more."""
    per_set = -(-size // len(comparison.sets))
    return tuple(
        exhibit
        for number, one in enumerate(comparison.sets)
        for exhibit in _of_set(one, comparison.labels, count=per_set, seed=number)
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


def _of_set(one: SetComparison, labels: tuple[str, ...], *, count: int, seed: int) -> Iterator[Exhibit]:
    gains = 1 / one.results[-1].first_ranks - 1 / one.results[0].first_ranks
    starts = (one.retrieval_set.relevant.counts.cumsum(0) - one.retrieval_set.relevant.counts).tolist()
    for query, kind in choose_queries(gains, count, seed).items():
        num_relevant = int(one.retrieval_set.relevant.counts[query])
        relevant = one.retrieval_set.relevant.values[starts[query] : starts[query] + num_relevant].tolist()
        yield Exhibit(
            set_name=one.retrieval_set.name,
            kind=kind,
            query=_tile(one.retrieval_set.queries[query]),
            wanted=_tile(one.retrieval_set.documents[relevant[0]], right=True),
            num_relevant=num_relevant,
            strips=tuple(_strips(one, labels, query, set(relevant))),
        )


def _strips(one: SetComparison, labels: tuple[str, ...], query: int, relevant: set[int]) -> Iterator[Strip]:
    for label, result in zip(labels, one.results, strict=True):
        found = [number for number in result.hits.documents[query].tolist() if number >= 0]
        tiles = [_tile(one.retrieval_set.documents[number], right=number in relevant) for number in found]
        yield Strip(label, int(result.first_ranks[query]), tuple(tiles))


def _tile(item: Item, *, right: bool = False) -> Tile:
    return Tile(item.text, tuple(thumbnail_uri(source) for source in item.images), right)
