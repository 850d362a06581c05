import math

import pytest

from vembed.training.schedule import Schedule, build_schedule
from vembed.training.settings import OptimizerSettings


def test_cosine_follows_its_formula_after_the_warmup():
    schedule = Schedule("cosine", num_steps=10, num_warmup_steps=4)
    assert [schedule.factor(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    for step in range(4, 10):
        assert schedule.factor(step) == pytest.approx((1 + math.cos(math.pi * (step - 4) / 6)) / 2)


def test_linear_falls_to_the_last_share():
    schedule = Schedule("linear", num_steps=4, num_warmup_steps=0)
    assert [schedule.factor(step) for step in range(4)] == [1, 0.75, 0.5, 0.25]


def test_constant_stays():
    schedule = Schedule("constant", num_steps=5, num_warmup_steps=2)
    assert [schedule.factor(step) for step in range(5)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("num_steps", "warmup"), [(1, 0), (1, 1), (7, 0), (7, 3), (7, 7), (7, 20)])
def test_every_step_learns_and_none_beyond_the_full_rate(decay, num_steps, warmup):
    schedule = Schedule(decay, num_steps, warmup)
    factors = [schedule.factor(step) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)


def test_warmup_steps_win_over_the_ratio():
    assert build_schedule(OptimizerSettings(warmup_ratio=0.1), 50).num_warmup_steps == 5
    assert build_schedule(OptimizerSettings(warmup_ratio=0.1, warmup_steps=0), 50).num_warmup_steps == 0
    assert build_schedule(OptimizerSettings(warmup_steps=7), 50).num_warmup_steps == 7
