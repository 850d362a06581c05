"""Few of many negatives, drawn anew each epoch."""

import pytest
import torch

from vembed.data.negatives import check_negatives, choose_negatives
from vembed.errors import DataError
from vembed.types import LoadedExample, LoadedItem


def _choose(number, epoch=0, row="d:1", seed=0):
    return choose_negatives("abcdefghij", number, seed=seed, epoch=epoch, row=row)


def test_no_limit_and_a_high_limit_take_all_in_order():
    assert _choose(None) == _choose(10) == _choose(99) == tuple("abcdefghij")
    assert _choose(0) == ()


def test_the_draw_is_distinct_in_order_and_depends_on_seed_epoch_and_row():
    first = _choose(3)
    assert len(set(first)) == 3
    assert list(first) == sorted(first)
    assert _choose(3) == first
    assert len({_choose(3, epoch=epoch) for epoch in range(20)}) > 5
    assert len({_choose(3, row=f"d:{row}") for row in range(20)}) > 5
    assert len({_choose(3, seed=seed) for seed in range(20)}) > 5


def test_every_negative_gets_its_turn():
    seen = {negative for epoch in range(60) for negative in _choose(2, epoch=epoch)}
    assert seen == set("abcdefghij")


def test_choosing_again_from_what_was_chosen_changes_nothing():
    chosen = _choose(3)
    assert choose_negatives(chosen, 3, seed=0, epoch=0, row="d:1") == chosen


def test_a_negative_equal_to_a_positive_is_refused_by_content():
    def item(key, draw=0):
        return LoadedItem("x", ({"pixel_values": torch.zeros(1)},), key, draw)

    check_negatives(LoadedExample(item(1), (item(2),), (item(3), item(1)), origin="d:7"))
    with pytest.raises(DataError, match=r"d:7: negatives\[1\]: has the same content as the row's positive"):
        check_negatives(LoadedExample(item(1), (item(2), item(4)), (item(3), item(4, draw=9)), origin="d:7"))
