"""Intervals: their width against theory, their pairing, their groups."""

import numpy as np
import pytest

from vembed.evaluation import bootstrap
from vembed.evaluation.bootstrap import Interval, intervals

GENERATOR = np.random.default_rng(0)


def half_width(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


def test_the_interval_of_independent_queries_is_the_normal_one():
    values = GENERATOR.normal(0.5, 0.2, 400)
    interval = intervals({"m": values}, np.arange(400), samples=2000, seed=0)["m"]
    assert half_width(interval) == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    assert (interval.low + interval.high) / 2 == pytest.approx(values.mean(), abs=0.002)


def test_repeating_every_query_does_not_narrow_the_interval():
    """Ten captions of one picture are one observation, not ten."""
    values = GENERATOR.normal(0.5, 0.2, 100)
    once = intervals({"m": values}, np.arange(100), samples=1000, seed=0)["m"]
    repeated = intervals({"m": np.repeat(values, 10)}, np.repeat(np.arange(100), 10), samples=1000, seed=0)["m"]
    as_rows = intervals({"m": np.repeat(values, 10)}, np.arange(1000), samples=1000, seed=0)["m"]
    assert repeated.low == pytest.approx(once.low)
    assert repeated.high == pytest.approx(once.high)
    assert half_width(as_rows) < 0.5 * half_width(once)


def test_groups_of_unequal_size_count_by_their_queries():
    """The figure is a mean over queries, so a group of nine weighs nine times as much."""
    values = np.array([1.0] * 9 + [0.0])
    groups = np.array([0] * 9 + [1])
    interval = intervals({"m": values}, groups, samples=500, seed=0)["m"]
    assert (interval.low, interval.high) == (0, 1)
    many = intervals({"m": np.tile(values, 200)}, np.repeat(np.arange(400), [9, 1] * 200), samples=500, seed=0)["m"]
    assert many.low < 0.9 < many.high


def test_pairing_finds_a_small_gain_that_two_intervals_hide():
    base = GENERATOR.uniform(0, 0.9, 200)
    tuned = base + 0.03 + GENERATOR.normal(0, 0.02, 200)
    both = intervals({"base": base, "tuned": tuned, "delta": tuned - base}, np.arange(200), samples=1000, seed=0)
    assert both["base"].high > both["tuned"].low
    assert not both["delta"].contains_zero
    assert both["delta"].low > 0.02


def test_no_difference_holds_zero():
    values = GENERATOR.normal(0, 1, 300)
    interval = intervals({"delta": values - values.mean()}, np.arange(300), samples=500, seed=0)["delta"]
    assert interval.contains_zero
    assert Interval(0.0, 0.0).contains_zero
    assert not Interval(-0.2, -0.1).contains_zero


def test_intervals_are_the_same_for_the_same_seed_only():
    values = {"m": GENERATOR.normal(0, 1, 50)}
    groups = np.arange(50)
    assert intervals(values, groups, samples=200, seed=1) == intervals(values, groups, samples=200, seed=1)
    assert intervals(values, groups, samples=200, seed=1) != intervals(values, groups, samples=200, seed=2)


def test_group_numbers_do_not_matter():
    values = {"m": GENERATOR.normal(0, 1, 6)}
    small = intervals(values, np.array([0, 0, 1, 1, 2, 2]), samples=100, seed=0)
    large = intervals(values, np.array([5, 5, 70, 70, 999, 999]), samples=100, seed=0)
    assert small == large


@pytest.mark.parametrize(("groups", "samples"), [([0, 0, 0], 100), ([0, 1, 2], 0)])
def test_one_group_or_no_samples_give_no_interval(groups, samples):
    assert intervals({"m": np.array([0.1, 0.2, 0.3])}, np.array(groups), samples=samples, seed=0) == {}


def test_many_groups_are_drawn_in_blocks_with_the_same_result(monkeypatch):
    values, groups = {"m": GENERATOR.normal(0, 1, 40)}, np.arange(40)
    whole = intervals(values, groups, samples=100, seed=0)
    monkeypatch.setattr(bootstrap, "_COUNTS_AT_ONCE", 7 * 40)
    blocks = intervals(values, groups, samples=100, seed=0)
    assert (blocks["m"].low, blocks["m"].high) == pytest.approx((whole["m"].low, whole["m"].high), rel=1e-12)
