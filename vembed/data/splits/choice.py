"""Which components of rows become the validation set.

The first that holds is taken:

1. components in the order of their content hashed with the seed, each if it brings the set closer to the wanted size;
2. where everything found would be right on one of the sides: the two smallest components of one data set, if they are
   no more than a quarter of all rows, or twice the wanted share up to a half; two rows always are few enough;
3. the smallest component in which not everything is right, under the same limit;
4. nothing: it is refused.

Every data set keeps half of its rows (less where twice `fraction` leaves less), and two at least if it has them.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vembed.data.hashing import mixed_hash
from vembed.data.splits.components import Components
from vembed.errors import DataError

_MOST = 0.25  # of all rows, where fewer make no set that can tell models apart
_SHOWN = 6

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class _Parts:
    """The components: the rows of each, and the numbers of all in the order of the seed.

    one_kind: bool [components], True where everything is relevant to everything. dataset_numbers: int64 [rows]. sizes,
    keep: data set -> rows that can be read, and how many of them it must keep.
    """

    rows: Sequence[Rows]
    order: Sequence[int]
    one_kind: NDArray[np.bool_]
    dataset_numbers: NDArray[np.int64]
    sizes: Mapping[int, int]
    keep: Mapping[int, int]

    @property
    def num_rows(self) -> int:
        """Rows that can be read."""
        return sum(self.sizes.values())

    def counts(self, number: int) -> Counter[int]:
        """Data set -> rows of the component."""
        return Counter(self.dataset_numbers[self.rows[number]].tolist())

    def smallest_first(self) -> list[int]:
        """The numbers by size, equal ones in the order of the seed."""
        return sorted(self.order, key=lambda number: len(self.rows[number]))

    def both_can_rank(self, chosen: Collection[int]) -> bool:
        """True if both sides, those chosen and the rest, have something to tell apart."""
        taken = set(chosen)
        return self._can_rank(chosen) and self._can_rank(number for number in self.order if number not in taken)

    def _can_rank(self, numbers: Iterable[int]) -> bool:
        """True if in some data set not every document is relevant to every query."""
        seen: set[int] = set()
        for number in numbers:
            datasets = self.counts(number)
            if not self.one_kind[number] or not seen.isdisjoint(datasets):
                return True
            seen.update(datasets)
        return False


@dataclass
class _Chosen:
    """Component numbers, and data set -> rows that it has left."""

    left: Counter[int]
    numbers: list[int] = field(default_factory=list)
    num_rows: int = 0

    def add(self, parts: _Parts, number: int) -> bool:
        """Take a component, unless a data set would keep too little; True if it was taken."""
        counts = parts.counts(number)
        if any(self.left[dataset] - count < parts.keep[dataset] for dataset, count in counts.items()):
            return False
        self.left.subtract(counts)
        self.numbers.append(number)
        self.num_rows += len(parts.rows[number])
        return True


def choose_validation_rows(
    components: Components, dataset_numbers: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Bool [rows]: True for the rows of the validation set. Rows that cannot be read are in no part and never chosen.

    dataset_numbers: int64 [rows]. Raises DataError when no set can be split off.
    """
    parts = _parts(components, dataset_numbers, fraction, seed)
    numbers = _closest(parts, fraction * parts.num_rows)
    if not parts.both_can_rank(numbers):
        most = max(parts.num_rows * max(_MOST, min(2 * fraction, 0.5), fraction), 2)
        small = (few for few in _fewest(parts) if sum(len(parts.rows[one]) for one in few) <= most)
        numbers = next(filter(parts.both_can_rank, small), [])
    if not numbers:
        raise DataError(_refusal(parts))
    chosen = np.zeros(len(dataset_numbers), bool)
    for number in numbers:
        chosen[parts.rows[number]] = True
    return chosen


def _parts(components: Components, dataset_numbers: NDArray[np.int64], fraction: float, seed: int) -> _Parts:
    rows = _rows_by_component(components)
    sizes = Counter(dataset_numbers[components.labels >= 0].tolist())
    share = max(0.0, min(0.5, 1 - 2 * fraction))
    return _Parts(
        rows,
        sorted(range(len(rows)), key=lambda number: mixed_hash(seed, int(components.keys[number]))),
        components.one_kind,
        dataset_numbers,
        sizes,
        {dataset: max(min(2, size), int(share * size)) for dataset, size in sizes.items()},
    )


def _closest(parts: _Parts, wanted: float) -> list[int]:
    """The components that bring the set closer to the wanted number of rows, in the order of the seed."""
    chosen = _nothing(parts)
    for number in parts.order:
        if abs(chosen.num_rows + len(parts.rows[number]) - wanted) <= abs(chosen.num_rows - wanted):
            chosen.add(parts, number)
        if chosen.num_rows >= wanted:
            break
    return chosen.numbers


def _fewest(parts: _Parts) -> Iterator[list[int]]:
    """The smallest two components of one data set, then the smallest one that can rank by itself."""
    smallest = parts.smallest_first()
    pairs = []
    for dataset in parts.keep:
        chosen = _nothing(parts)
        for number in smallest:
            if dataset in parts.counts(number):
                chosen.add(parts, number)
            if len(chosen.numbers) == 2:
                pairs.append(chosen)
                break
    if pairs:
        yield min(pairs, key=lambda chosen: chosen.num_rows).numbers
    yield from ([number] for number in smallest if not parts.one_kind[number] and _nothing(parts).add(parts, number))


def _nothing(parts: _Parts) -> _Chosen:
    return _Chosen(Counter(parts.sizes))


def _rows_by_component(components: Components) -> list[Rows]:
    """The row numbers of each component, int64 [its rows]."""
    order = np.argsort(components.labels, kind="stable")
    labels = components.labels[order]
    starts = np.searchsorted(labels, np.arange(len(components.keys)))
    return np.split(order[starts[0] :], starts[1:] - starts[0]) if len(starts) else []


def _refusal(parts: _Parts) -> str:
    sizes = sorted((len(rows) for rows in parts.rows), reverse=True)
    of_sizes = ""
    if len(sizes) > 1:
        more = f" and {len(sizes) - _SHOWN} more" if len(sizes) > _SHOWN else ""
        of_sizes = (
            f" of {', '.join(map(str, sizes[:_SHOWN]))}{more} rows, too few or too large to part with two of them"
        )
    larger = sum(sizes[-2:]) / max(1, parts.num_rows)
    raised = f", val_fraction: {larger:.2f} if so many may go" if len(sizes) > 3 and larger <= 0.5 else ""
    return (
        f"no validation set can be split off: the {parts.num_rows} rows share groups, texts or pictures, in"
        f" {len(sizes)} connected part{'s' * (len(sizes) != 1)}{of_sizes}; pass val_data_path{raised}, or val_fraction:"
        " 0 to train without one"
    )
