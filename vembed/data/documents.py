"""The documents of a row that can be read, where others cannot: one broken picture costs a document, not the row.

A document that is left out is one that cannot be read: a missing or broken file, a picture that the model refuses. A
cell that is no document at all makes the row bad, as does a query that cannot be read. Of an item of several pictures
none is left out: with fewer of them it would be another item.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from vembed.data.hashing import mixed_hash, row_name
from vembed.data.negatives import with_documents
from vembed.errors import DataError
from vembed.types import Example, Item, RowNeeds

Read = TypeVar("Read")
# Whatever is made of an item; its slot is 0 for the query, then that of the document among those of its row.
ReadItem = Callable[[Item, int], Read]


@dataclass(frozen=True)
class ReadDocuments(Generic[Read]):
    """What was made of a row's documents, by their numbers in the row, and why the others were left out."""

    positives: Mapping[int, Read]
    negatives: Mapping[int, Read]
    left_out: tuple[str, ...] = ()


def read_all(example: Example, negatives: Sequence[int], read: ReadItem[Read]) -> ReadDocuments[Read]:
    """All positives, and the negatives of these numbers. Raises DataError for the first that cannot be read."""
    first = 1 + len(example.positives)
    return ReadDocuments(
        {number: read(item, 1 + number) for number, item in enumerate(example.positives)},
        {number: read(example.negatives[number], first + place) for place, number in enumerate(negatives)},
    )


def read_what_can_be(
    example: Example, negatives: Sequence[int], read: ReadItem[Read], *, needs: RowNeeds, others: Iterable[int] = ()
) -> ReadDocuments[Read]:
    """As `read_all`, without the documents that cannot be read; a negative's place goes to the next of `others`.

    Raises DataError when fewer are left than the row needs: a positive, and what `needs` says.
    """
    left_out: list[str] = []

    def first_of(numbers: Iterable[int], items: Sequence[Item], slot: int) -> dict[int, Read]:
        for number in numbers:
            try:
                return {number: read(items[number], slot)}
            except DataError as error:
                left_out.append(str(error))
        return {}

    positives: dict[int, Read] = {}
    for number in range(len(example.positives)):
        positives |= first_of([number], example.positives, 1 + number)
    kept: dict[int, Read] = {}
    spare = iter(others)
    for place, number in enumerate(negatives):
        kept |= first_of(chain([number], spare), example.negatives, 1 + len(example.positives) + place)
    too_few = not positives or (needs.negatives and not kept) or len(positives) + len(kept) < needs.num_documents
    if left_out and too_few:
        raise DataError(left_out[0])
    return ReadDocuments(positives, dict(sorted(kept.items())), tuple(left_out))


def readable_part(
    example: Example, check: Callable[[Item], object], needs: RowNeeds
) -> tuple[Example, tuple[str, ...]]:
    """The row without the documents that `check` raises DataError for, and why; all of its negatives are asked for.

    Raises DataError when the row cannot be used: its query cannot be read, or too few documents are left.
    """

    def read(item: Item, _slot: int) -> None:
        check(item)

    check(example.query)
    found = read_what_can_be(example, range(len(example.negatives)), read, needs=needs)
    return with_documents(example, list(found.positives), list(found.negatives)), found.left_out


def other_negatives(example: Example, chosen: Sequence[int], *, seed: int, epoch: int) -> Iterator[int]:
    """The negatives that are not chosen, in an order that is a pure function of (seed, epoch, row)."""
    others = sorted(set(range(len(example.negatives))) - set(chosen))
    random.Random(mixed_hash("other negatives", seed, epoch, row_name(example.origin))).shuffle(others)
    yield from others  # a generator, since hardly any row needs them
