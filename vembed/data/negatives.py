"""Chooses the explicit negatives of a row that are used: all of them, or a few drawn anew each epoch."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from vembed.data.hashing import mixed_hash, row_name
from vembed.errors import DataError
from vembed.types import Example, LoadedExample

Negative = TypeVar("Negative")
Row = TypeVar("Row", Example, LoadedExample)


def choose_negatives(
    negatives: Sequence[Negative], num_chosen: int | None, *, seed: int, epoch: int, row: str
) -> tuple[Negative, ...]:
    """At most `num_chosen` (None: all) in their order; a pure function of (seed, epoch, row).

    >>> choose_negatives("abc", 2, seed=0, epoch=0, row="train.jsonl:1") == choose_negatives(
    ...     "abc", 2, seed=0, epoch=0, row="train.jsonl:1")
    True
    """
    if num_chosen is None or len(negatives) <= num_chosen:
        return tuple(negatives)
    draw = random.Random(mixed_hash("negatives", seed, epoch, row))
    return tuple(negatives[number] for number in sorted(draw.sample(range(len(negatives)), num_chosen)))


def with_chosen_negatives(row: Row, num_chosen: int | None, *, seed: int, epoch: int) -> Row:
    """The row with at most `num_chosen` of its negatives, and their scores and embeddings if it has any."""
    numbers: Sequence[int] = range(len(row.negatives))
    chosen: tuple[int, ...] = choose_negatives(numbers, num_chosen, seed=seed, epoch=epoch, row=row_name(row.origin))
    return with_documents(row, range(len(row.positives)), chosen)


def with_documents(row: Row, positives: Sequence[int], negatives: Sequence[int]) -> Row:
    """The row with its positives and negatives of these numbers, and their scores and embeddings if it has any."""
    first: int = len(row.positives)
    kept = [*positives, *(first + number for number in negatives)]
    scores = tuple(row.scores[number] for number in kept) if row.scores else ()
    embeddings = row.embeddings
    if embeddings is not None:
        embeddings = replace(embeddings, documents=embeddings.documents[kept])
    return replace(
        row,
        positives=tuple(row.positives[number] for number in positives),
        negatives=tuple(row.negatives[number] for number in negatives),
        scores=scores,
        embeddings=embeddings,
    )


def check_negatives(example: LoadedExample) -> None:
    """Raise DataError when an explicit negative has the same content as one of the row's positives."""
    positives = {item.content_hash for item in example.positives}
    for number, item in enumerate(example.negatives):
        if item.content_hash in positives:
            raise DataError(f"{example.origin}: negatives[{number}]: has the same content as the row's positive")
