"""Targets written as lists, for tests of losses and steps."""

import random
from collections.abc import Sequence

import torch

from vembed.grad_cache.cachex.tree_utils import select_rows
from vembed.types import Ragged, Sides, Targets


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    """Int64 values and counts of rows of numbers."""
    values = [value for row in rows for value in row]
    return Ragged(torch.tensor(values, dtype=torch.int64), torch.tensor([len(row) for row in rows], dtype=torch.int64))


def make_targets(
    positives: Sequence[Sequence[int]],
    num_documents: int,
    *,
    negatives: Sequence[Sequence[int]] | None = None,
    query_groups: Sequence[int] | None = None,
    document_groups: Sequence[int] | None = None,
    query_hashes: Sequence[int] | None = None,
    document_hashes: Sequence[int] | None = None,
) -> Targets:
    """Targets of len(positives) queries; groups are absent and hashes all different unless given."""
    num_queries = len(positives)
    return Targets(
        query_groups=torch.tensor(query_groups or [-1] * num_queries),
        query_hashes=torch.tensor(query_hashes or range(1000, 1000 + num_queries)),
        document_groups=torch.tensor(document_groups or [-1] * num_documents),
        document_hashes=torch.tensor(document_hashes or range(2000, 2000 + num_documents)),
        positives=ragged(positives),
        negatives=ragged(negatives or [[]] * num_queries),
    )


def random_targets(seed: int, *, num_keys: int = 4) -> Targets:
    """Targets whose keys collide often: at most `num_keys` groups and hashes, shared by queries and documents."""
    draw = random.Random(seed)
    num_queries, num_documents = draw.randint(1, 7), draw.randint(1, 8)

    def columns(least: int) -> list[list[int]]:
        most = min(num_documents, 2)
        return [draw.sample(range(num_documents), draw.randint(least, most)) for _ in range(num_queries)]

    def keys(count: int, least: int) -> list[int]:
        return [draw.randint(least, num_keys) for _ in range(count)]

    return make_targets(
        columns(1),
        num_documents,
        negatives=columns(0),
        query_groups=keys(num_queries, -1),
        document_groups=keys(num_documents, -1),
        query_hashes=keys(num_queries, 1),
        document_hashes=keys(num_documents, 1),
    )


def select_targets(targets: Targets, queries: Sequence[int], documents: Sequence[int]) -> Targets:
    """The targets with queries and documents in another order (permutations)."""
    new_column = {old: new for new, old in enumerate(documents)}
    return Targets(
        query_groups=targets.query_groups[list(queries)],
        query_hashes=targets.query_hashes[list(queries)],
        document_groups=targets.document_groups[list(documents)],
        document_hashes=targets.document_hashes[list(documents)],
        positives=_renamed(rows_of(targets.positives), queries, new_column),
        negatives=_renamed(rows_of(targets.negatives), queries, new_column),
        ignored=None if targets.ignored is None else ragged([rows_of(targets.ignored)[query] for query in queries]),
        scored=None if targets.scored is None else _renamed(rows_of(targets.scored), queries, new_column),
        scores=None if targets.scores is None else select_rows(targets.scores, torch.tensor(list(queries))),
        teacher=_select_sides(targets.teacher, queries, documents),
        reference=_select_sides(targets.reference, queries, documents),
    )


def _select_sides(sides: Sides | None, queries: Sequence[int], documents: Sequence[int]) -> Sides | None:
    if sides is None:
        return None
    rows, columns = torch.tensor(list(queries)), torch.tensor(list(documents))
    return Sides(select_rows(sides.queries, rows), select_rows(sides.documents, columns))


def rows_of(values: Ragged) -> list[list[int]]:
    """A Ragged of numbers as lists."""
    return [part.tolist() for part in values.values.split(values.counts.tolist())]


def _renamed(rows: list[list[int]], queries: Sequence[int], new_column: dict[int, int]) -> Ragged:
    return ragged([[new_column[column] for column in rows[query]] for query in queries])
