"""Whether evaluations could choose a checkpoint."""

from vembed.training.run.best import count_evaluation, equal_figures_note, warn_of_equal_figures
from vembed.training.state import Best, TrainState


def _evaluated(*values: float) -> TrainState:
    """The state after evaluations of these figures, each better than, or equal to, the best before."""
    state = TrainState()
    for step, value in enumerate(values, 1):
        state.step = step
        count_evaluation(state, value, "mrr")
        if state.best is None or value >= state.best.value:
            state.best = Best("mrr", value, step)
    warn_of_equal_figures(state)
    return state


def test_figures_that_differ_are_no_matter(caplog):
    assert _evaluated(0.4, 0.5, 0.3).figures_differ
    _evaluated(0.7)
    assert not caplog.records


def test_figures_that_are_all_equal_are_told_at_the_end(caplog):
    _evaluated(0.5, 0.5, 0.5)
    (record,) = caplog.records
    assert "all 3 evaluations gave mrr 0.5000 and chose nothing: best/ and final/ are the last one's (step 3)" in (
        record.getMessage()
    )


def test_a_first_evaluation_at_the_ceiling_is_told(caplog):
    _evaluated(1.0, 0.9)
    (record,) = caplog.records
    assert "mrr is 1.0000 at the first evaluation (step 1)" in record.getMessage()
    caplog.clear()
    _evaluated(0.9, 1.0)
    assert not caplog.records


def test_the_count_comes_back_with_a_checkpoint():
    state = _evaluated(0.5, 0.4)
    again = TrainState.from_dict(state.to_dict())
    assert (again.num_evaluations, again.figures_differ) == (2, True)
    old = {key: value for key, value in state.to_dict().items() if key not in ("num_evaluations", "figures_differ")}
    assert TrainState.from_dict(old).num_evaluations == 0


def test_the_report_says_that_nothing_was_chosen():
    def line(step, *values):
        return {"step": step, "eval": {f"set {number}": {"mrr": value} for number, value in enumerate(values)}}

    loss = {"step": 1, "loss": 0.3}
    assert "All 2 evaluations" in equal_figures_note([loss, line(1, 1.0, 0.5), line(2, 1.0, 0.5)], "mrr")
    assert "gave mrr 0.7500" in equal_figures_note([line(1, 1.0, 0.5), line(2, 0.5, 1.0)], "mrr")  # the mean chooses
    assert equal_figures_note([line(1, 1.0), line(2, 0.9)], "mrr") is None
    assert equal_figures_note([line(1, 1.0)], "mrr") is None
    assert equal_figures_note([], "mrr") is None
