"""Damaged inputs of every kind, a fixed seed; `make fuzz` tries ten thousand with a new one."""

import pytest

from tests.fuzz.__main__ import problems, run, table
from tests.fuzz.kinds import KINDS

_INPUTS = 400


@pytest.mark.slow
def test_damaged_inputs_are_read_right_refused_or_skipped() -> None:
    tallies = run(_INPUTS, seed=20261129, kinds=list(KINDS), processes=1)
    assert not problems(tallies), table(tallies)
    assert sum(tally.num_inputs for tally in tallies.values()) >= _INPUTS
