"""Which rows come when: every row once, weights, ranks, and no memory of what came before."""

from collections import Counter

import pytest

from vembed.data.batches.sampling import DatasetSize, RowOrder, num_batches, plan_epoch


def _rows(size, *, num, epoch=0, seed=0, rank=0, world_size=1):
    order = RowOrder(size, seed=seed, epoch=epoch, rank=rank, world_size=world_size)
    return [order[place] for place in range(num)]


def test_an_order_holds_every_row_once_per_round():
    size = DatasetSize("a", 50)
    rows = _rows(size, num=150)
    rounds = [rows[:50], rows[50:100], rows[100:]]
    assert [sorted(one) for one in rounds] == [list(range(50))] * 3
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]


def test_the_order_depends_on_seed_epoch_and_name_only():
    size = DatasetSize("a", 50)
    assert _rows(size, num=50) == _rows(DatasetSize("a", 50, weight=3), num=50)
    others = [_rows(size, num=50, epoch=1), _rows(size, num=50, seed=1), _rows(DatasetSize("b", 50), num=50)]
    assert all(other != _rows(size, num=50) for other in others)


def test_places_can_be_asked_for_in_any_order():
    size = DatasetSize("a", 7)
    forward = _rows(size, num=30)
    order = RowOrder(size, seed=0, epoch=0)
    assert [order[place] for place in reversed(range(30))] == forward[::-1]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_order_without_overlap(world_size):
    size = DatasetSize("a", 12)
    whole = _rows(size, num=24)
    parts = [_rows(size, num=24 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [row for together in zip(*parts, strict=True) for row in together] == whole


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "world_size", "weight", "rows"),
    [
        (10, 5, 1, 1, [5, 5]),
        (12, 5, 1, 1, [5, 5, 2]),
        (11, 5, 1, 1, [5, 5]),  # one row over has no negatives
        (3, 5, 1, 1, [3]),
        (1, 5, 1, 1, [1]),
        (10, 5, 1, 2, [5, 5, 5, 5]),
        (10, 5, 1, 0.5, [5]),
        (10, 5, 1, 0.01, [1]),
        (20, 5, 2, 1, [5, 5]),
        (27, 5, 2, 1, [5, 5, 3]),
        (22, 5, 2, 1, [5, 5, 1]),
        (21, 5, 2, 1, [5, 5]),
        (1, 5, 2, 1, [1]),
    ],
)
def test_batches_of_one_data_set(num_rows, batch_size, world_size, weight, rows):
    size = DatasetSize("a", num_rows, weight)
    plan = plan_epoch([size], batch_size, seed=0, epoch=0, world_size=world_size)
    assert [batch.num_rows for batch in plan] == rows
    assert num_batches(size, batch_size, world_size) == len(rows)


def test_batches_of_several_data_sets_are_mixed_anew_each_epoch():
    sizes = [DatasetSize("a", 100), DatasetSize("b", 50, weight=2), DatasetSize("c", 20)]
    plans = [plan_epoch(sizes, 10, seed=0, epoch=epoch) for epoch in (0, 0, 1)]
    numbers = [[batch.dataset for batch in plan] for plan in plans]
    assert numbers[0] == numbers[1] != numbers[2]
    assert Counter(numbers[0]) == Counter(numbers[2]) == {0: 10, 1: 10, 2: 2}
    assert len({tuple(numbers[0][start : start + 3]) for start in range(19)}) > 3
    assert [batch.dataset for batch in plan_epoch(sizes, 10, seed=1, epoch=0)] != numbers[0]


def test_the_smaller_rest_comes_last_of_its_data_set():
    for epoch in range(10):
        plan = plan_epoch([DatasetSize("a", 25), DatasetSize("b", 37)], 10, seed=0, epoch=epoch)
        assert [batch.num_rows for batch in plan if batch.dataset == 0] == [10, 10, 5]
        assert [batch.num_rows for batch in plan if batch.dataset == 1] == [10, 10, 10, 7]


def test_a_weight_of_two_draws_every_row_twice_in_different_orders():
    size = DatasetSize("a", 30, weight=2)
    plan = plan_epoch([size], 6, seed=0, epoch=0)
    rows = _rows(size, num=sum(batch.num_rows for batch in plan))
    assert set(Counter(rows).values()) == {2}
    assert rows[:30] != rows[30:]
