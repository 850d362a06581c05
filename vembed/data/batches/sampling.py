"""The order of rows and batches, as a pure function of (seed, epoch): nothing is kept, so any point can be resumed.

Each data set has an endless order: its rows shuffled, shuffled anew, and so on. Process `rank` of `world_size` owns
every world_size-th place of it. An epoch takes `weight` times a data set's rows; each batch is of one data set, and
which one is shuffled as well. All processes plan the same batches of the same sizes without asking each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vembed.data.hashing import text_hash


@dataclass(frozen=True)
class DatasetSize:
    """Name, rows and weight of a data set, which is what plans are made from."""

    name: str
    num_rows: int
    weight: float = 1.0


@dataclass(frozen=True)
class PlannedBatch:
    """Data set of a batch, by number, and rows that each process adds to it."""

    dataset: int
    num_rows: int


def num_batches(size: DatasetSize, batch_size: int, world_size: int = 1) -> int:
    """Batches of one data set in an epoch."""
    return len(batch_sizes(size, batch_size, world_size))


def plan_epoch(
    sizes: Sequence[DatasetSize], batch_size: int, *, seed: int, epoch: int, world_size: int = 1
) -> list[PlannedBatch]:
    """The batches of an epoch in order, `batch_size` rows per process; a data set's smaller rest comes last of it.

    >>> [(batch.dataset, batch.num_rows) for batch in plan_epoch([DatasetSize("a", 7)], 3, seed=0, epoch=0)]
    [(0, 3), (0, 3)]
    >>> [(batch.dataset, batch.num_rows) for batch in plan_epoch([DatasetSize("a", 8)], 3, seed=0, epoch=0)]
    [(0, 3), (0, 3), (0, 2)]
    """
    rows = [batch_sizes(size, batch_size, world_size) for size in sizes]
    numbers = np.repeat(np.arange(len(sizes)), [len(one) for one in rows])
    shuffled = _generator(seed, epoch, "batches").permutation(numbers)
    queues = [iter(one) for one in rows]
    return [PlannedBatch(int(number), next(queues[number])) for number in shuffled]


class RowOrder:
    """A data set's endless order in one epoch, as one process sees it: `[place] -> row`."""

    def __init__(self, size: DatasetSize, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1) -> None:
        self._size = size
        self._seed = seed
        self._epoch = epoch
        self._rank = rank
        self._world_size = world_size
        self._round: tuple[int, NDArray[np.int64]] | None = None

    def __getitem__(self, place: int) -> int:
        number, within = divmod(place * self._world_size + self._rank, self._size.num_rows)
        if self._round is None or self._round[0] != number:
            generator = _generator(self._seed, self._epoch, "rows", self._size.name, number)
            self._round = (number, generator.permutation(self._size.num_rows))
        return int(self._round[1][within])


def batch_sizes(size: DatasetSize, batch_size: int, world_size: int) -> list[int]:
    """Rows per process of each batch. A rest of one row in all has no negatives; it is left out if there is more."""
    drawn = max(1, round(size.num_rows * size.weight))
    full, rest = divmod(drawn, batch_size * world_size)
    rest //= world_size
    if full == 0:
        return [max(1, rest)]
    return [batch_size] * full + ([rest] if rest * world_size > 1 else [])


def _generator(*key: int | str) -> np.random.Generator:
    """A generator of its own for every key."""
    return np.random.default_rng([text_hash(part) if isinstance(part, str) else part for part in key])
