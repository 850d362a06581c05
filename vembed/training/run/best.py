"""Whether the evaluations of a run could choose its best checkpoint, told while it trains and in its report."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from vembed.training.state import TrainState

_log = logging.getLogger(__name__)
_CEILING = 1.0
_ADVICE = (
    "give validation more rows or harder ones (val_data_path, a larger val_fraction), or choose by another best_metric"
)


def count_evaluation(state: TrainState, value: float, metric: str) -> None:
    """Count an evaluation whose figure is `value`; warns where the first one is already as good as can be."""
    if state.num_evaluations == 0 and state.best is None and value >= _CEILING:
        _log.warning(
            "%s is %.4f at the first evaluation (step %d), and no checkpoint can be better; of equal ones the last is"
            " kept: %s",
            metric, value, state.step, _ADVICE,
        )  # fmt: skip
    state.num_evaluations += 1
    state.figures_differ = state.figures_differ or (state.best is not None and value != state.best.value)


def warn_of_equal_figures(state: TrainState) -> None:
    """Warn where several evaluations all gave one figure."""
    if state.best is not None and state.num_evaluations > 1 and not state.figures_differ:
        _log.warning(
            "all %d evaluations gave %s %.4f and chose nothing: best/ and final/ are the last one's (step %d); %s",
            state.num_evaluations, state.best.metric, state.best.value, state.best.step, _ADVICE,
        )  # fmt: skip


def equal_figures_note(history: Sequence[Mapping[str, Any]], metric: str) -> str | None:  # Any: lines of metrics.jsonl
    """A sentence for the report of a run whose evaluations all gave one figure; None where they differed."""
    sets = [line["eval"] for line in history if line.get("eval")]
    values = [
        sum(figures[metric] for figures in one.values()) / len(one)
        for one in sets
        if all(metric in figures for figures in one.values())
    ]
    if len(values) < 2 or len(set(values)) > 1:
        return None
    return (
        f"All {len(values)} evaluations of the validation data gave {metric} {values[0]:.4f}: they chose no checkpoint,"
        " and the weights kept are those of the last one."
    )
