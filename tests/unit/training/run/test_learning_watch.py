"""A run that learns nothing says so, once."""

import pytest

from vembed.losses.lacks import Lack
from vembed.training.loop import StepRecord
from vembed.training.run.learning_watch import LearningWatch
from vembed.training.state import TrainState

LACK = Lack("no query has a negative", "give rows negatives")


def _record(grad_norm=1.0, lacks=(None,), skipped=False):
    return StepRecord(1.0, {"text": 1e-5}, grad_norm, 0.05, 8, 0.1, 0.1, skipped, tuple(lacks))


def _watch(records, num_steps=100):
    watch = LearningWatch(num_steps)
    for step, record in enumerate(records, 1):
        watch.on_step(record, TrainState(step=step))


def test_a_run_that_learns_says_nothing(caplog):
    _watch([_record()] * 100)
    assert not caplog.records


@pytest.mark.parametrize("num_batches", [1, 2])
def test_batches_that_lack_something_are_told_once(caplog, num_batches):
    _watch([_record(0.0, [LACK] * num_batches)] * 100)
    (record,) = caplog.records
    assert record.getMessage() == (
        "10 of the first 10 batches taught nothing: in them no query has a negative; give rows negatives"
    )


def test_a_short_run_is_told_at_its_end(caplog):
    _watch([_record(0.0, [LACK]), _record(0.0, [LACK])], num_steps=2)
    (record,) = caplog.records
    assert "2 of the first 2 batches taught nothing" in record.getMessage()


def test_most_batches_are_enough_and_a_few_are_not(caplog):
    _watch([_record(1.0, [LACK, LACK, None])] * 20)
    assert "of the first 12 batches taught nothing" in caplog.text
    caplog.clear()
    _watch([_record(1.0, [LACK, None, None])] * 20)
    assert not caplog.records


def test_batches_that_only_pull_together_are_told_as_such(caplog):
    _watch([_record(1.0, [Lack("all labels are 1", "give both", moves=True)])] * 20)
    assert "pulled everything together: in them all labels are 1" in caplog.text


def test_a_gradient_of_zero_from_the_first_step_on_is_told_once(caplog):
    _watch([_record(0.0)] * 30)
    (record,) = caplog.records
    assert "the gradient is exactly 0 from the first step on (step 3)" in record.getMessage()
    caplog.clear()
    _watch([_record(0.0)], num_steps=1)
    assert "exactly 0" in caplog.text


def test_a_gradient_that_ends_is_told_after_many_steps(caplog):
    _watch([_record(), *[_record(0.0)] * 19, _record(), *[_record(0.0)] * 19])
    assert not caplog.records
    _watch([_record(), *[_record(0.0)] * 30])
    (record,) = caplog.records
    assert "in each of the last 20 steps (step 21)" in record.getMessage()


def test_skipped_steps_are_no_sign_of_learning(caplog):
    _watch([_record(float("nan"), skipped=True), *[_record(0.0)] * 3])
    assert "from the first step on" in caplog.text


@pytest.mark.parametrize(
    ("num_cut", "num_steps", "is_told"), [(5, 100, True), (5, 4, True), (4, 100, False), (0, 100, False)]
)
def test_texts_that_are_cut_in_most_rows_are_told_once(caplog, num_cut, num_steps, is_told):
    watch = LearningWatch(num_steps)
    for step in range(1, min(num_steps, 30) + 1):
        watch.on_step(_record(), TrainState(step=step, num_truncated_texts=num_cut * step))
    looked_at = min(num_steps, 10)
    texts = f"{num_cut * looked_at} texts of the first {8 * looked_at} rows are longer than the model reads"
    assert [texts in record.getMessage() for record in caplog.records] == [True] * is_told


def test_a_run_that_goes_on_is_not_told_of_the_texts_before(caplog):
    watch = LearningWatch(100)
    for step in range(51, 80):
        watch.on_step(_record(), TrainState(step=step, num_truncated_texts=1000))
    assert not caplog.records
