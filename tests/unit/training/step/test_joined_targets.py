"""Targets of batches joined: what the collator makes of all rows at once, whatever the cut into batches."""

import random

import pytest
import torch

from tests.targets import make_targets, rows_of
from vembed.data.collators.default import Collator
from vembed.training.step.joined_targets import join_targets
from vembed.types import LoadedExample, LoadedItem, Targets

NUM_KEYS = 6  # few contents, groups and draws, so that they meet often


def random_rows(seed: int, count: int) -> list[LoadedExample]:
    """Rows with up to two positives and negatives each, some of them with scores, ignored contents or a query image."""
    draw = random.Random(seed)
    with_scores, with_ignored = draw.random() < 0.5, draw.random() < 0.5

    def item() -> LoadedItem:
        content = draw.randint(1, NUM_KEYS)
        return LoadedItem(None, (), content_hash=content, draw=draw.choice([0, 0, 7]))

    def row() -> LoadedExample:
        items = [item() for _ in range(draw.randint(1, 2))]
        positive = {one.content_hash for one in items}
        negatives = [one for one in (item(), item()) if one.content_hash not in positive]
        return LoadedExample(
            item(),
            tuple(items),
            tuple(negatives),
            group=draw.choice([None, 3, 4, 5]),
            ignored=(draw.randint(1, NUM_KEYS),) if with_ignored and draw.random() < 0.5 else (),
            scores=tuple(draw.random() for _ in (*items, *negatives)) if with_scores and draw.random() < 0.7 else (),
            query_image=item() if draw.random() < 0.3 else None,
        )

    return [row() for _ in range(count)]


def spelled_out(targets: Targets) -> dict[str, object]:
    """Everything that targets say, with documents by content and draw in the place of their columns."""
    draws = targets.document_draws
    assert draws is not None
    keys = list(zip(targets.document_hashes.tolist(), draws.tolist(), strict=True))
    assert len(set(keys)) == len(keys)

    def named(rows):
        return None if rows is None else [[keys[column] for column in row] for row in rows_of(rows)]

    return {
        "groups": targets.query_groups.tolist(),
        "queries": targets.query_hashes.tolist(),
        "documents": dict(zip(keys, targets.document_groups.tolist(), strict=True)),
        "positives": [sorted(row) for row in named(targets.positives)],
        "negatives": [sorted(row) for row in named(targets.negatives)],
        "scored": named(targets.scored),
        "scores": None if targets.scores is None else rows_of(targets.scores),
        "ignored": None if targets.ignored is None else rows_of(targets.ignored),
    }


def test_joined_batches_are_the_batch_of_all_rows():
    met = {"groups": 0, "repeated": 0, "scored": 0, "ignored": 0}
    for seed in range(300):
        rows = random_rows(seed, 2 + seed % 7)
        num_parts = 2 + seed % 2 if len(rows) > 2 else 2
        cuts = sorted(random.Random(seed).sample(range(1, len(rows)), num_parts - 1))
        parts = [
            Collator()(rows[start:stop]).targets for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True)
        ]
        joined, counted = join_targets(parts)
        whole = Collator()(rows).targets
        assert spelled_out(joined) == spelled_out(whole)
        for named in (joined.positives, joined.negatives):
            assert all(row == sorted(set(row)) for row in rows_of(named))
        hashes = torch.cat([part.document_hashes for part in parts])
        assert torch.equal(hashes[counted], joined.document_hashes)
        assert torch.equal(counted, counted.unique())
        met["repeated"] += len(counted) < len(hashes)
        met["groups"] += sum(map(len, rows_of(joined.positives))) > sum(len(part.positives.values) for part in parts)
        met["scored"] += joined.scored is not None
        met["ignored"] += joined.ignored is not None
    assert min(met.values()) > 30, met


def test_a_repeated_document_is_the_column_where_it_stands_first():
    first = make_targets([[0], [1]], 2, document_hashes=[7, 8])
    second = make_targets([[0], [1]], 3, document_hashes=[9, 7, 8], negatives=[[1], [2]])
    joined, counted = join_targets([first, second])
    assert counted.tolist() == [0, 1, 2]
    assert joined.document_hashes.tolist() == [7, 8, 9]
    assert rows_of(joined.positives) == [[0], [1], [2], [0]]
    assert rows_of(joined.negatives) == [[], [], [0], [1]]


@pytest.mark.parametrize(("draws", "columns"), [((1, 1), 1), ((1, 2), 2)])
def test_augmentations_of_a_content_are_documents_of_their_own(draws, columns):
    item = LoadedItem(None, (), content_hash=5)
    query = LoadedItem(None, (), content_hash=1)
    parts = [
        Collator()([LoadedExample(query, (LoadedItem(None, (), content_hash=5, draw=draw),))]).targets for draw in draws
    ]
    joined, _ = join_targets(parts)
    assert joined.document_hashes.tolist() == [item.content_hash] * columns


def test_a_group_shares_a_document_of_several_groups_over_batches():
    """Document 7 is of groups 3 and 4 in one batch; rows of both in the other, which do not name it, have it too."""
    query, shared, own, other = (LoadedItem(None, (), content_hash=number) for number in (1, 7, 8, 9))
    first = Collator()([LoadedExample(query, (shared,), group=3), LoadedExample(query, (shared,), group=4)])
    rows = [LoadedExample(query, (own,), group=4), LoadedExample(query, (own,), (shared,), group=4)]
    second = Collator()([*rows, LoadedExample(query, (other,), group=3)])
    joined, _ = join_targets([first.targets, second.targets])
    assert joined.document_groups.tolist() == [3, 4, 3]
    assert rows_of(joined.positives) == [[0], [0], [0, 1], [1], [0, 2]]  # a row names it as a negative
    assert rows_of(joined.negatives) == [[], [], [], [0], []]
