"""Scalars: a run's figures as numbers by name and step, which is all that most trackers take."""

from collections.abc import Callable, Mapping
from typing import Any

from vembed.training.callbacks import evaluation_line, log_line
from vembed.training.loop import StepRecord
from vembed.training.state import Metrics, TrainState
from vembed.training.trackers.registry import TrackedRun

Write = Callable[[int, Mapping[str, float]], object]  # step, name -> number


class Scalars:
    """Gives `write` the numbers of every line that metrics.jsonl gets, as it gets them."""

    def __init__(self, run: TrackedRun, write: Write) -> None:
        self._run = run
        self._write = write

    def on_step(self, record: StepRecord, state: TrainState) -> None:
        """Nothing: a line is a mean over steps."""

    def on_log(self, record: StepRecord, state: TrainState) -> None:
        """Write the numbers of the steps since the line before."""
        self.write_line(log_line(record, state, self._run.plan, self._run.device))

    def on_evaluation(self, metrics: Metrics, state: TrainState) -> None:
        """Write the figures."""
        self.write_line(evaluation_line(metrics, state))

    def write_line(self, line: Mapping[str, Any]) -> None:  # Any: JSON
        """Write the numbers of a line of metrics.jsonl."""
        self._write(line["step"], numbers_of(line))


def numbers_of(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:  # Any: JSON
    """The numbers of a line by name, all but its step; what is null is left out.

    >>> numbers_of({"step": 8, "loss": 0.5, "grad_norm": None, "learning_rates": {"text": 0.01}})
    {'loss': 0.5, 'learning_rates/text': 0.01}
    >>> numbers_of({"step": 8, "eval": {"pairs": {"recall@1": 0.25}}})
    {'eval/pairs/recall@1': 0.25}
    """
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            numbers |= numbers_of(value, f"{prefix}{name}/")
        elif value is not None and prefix + name != "step":
            numbers[prefix + name] = value
    return numbers
