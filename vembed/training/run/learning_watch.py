"""Tells once, while a run trains, that it learns nothing, why, and what to do.

Only what a step knows on the host anyway is looked at: what its batches lacked, the norm of the gradient, and how many
texts were cut.
"""

import logging
from collections import Counter

from vembed.losses.lacks import Lack
from vembed.training.loop import StepRecord
from vembed.training.state import Metrics, TrainState

_log = logging.getLogger(__name__)
_FIRST_BATCHES = 10
_FIRST_STEPS = 3
_STEPS_IN_A_ROW = 20


class LearningWatch:
    """A callback that warns of batches with nothing to compare, a gradient of exactly 0, and texts that are cut."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._num_batches = 0
        self._lacks: Counter[Lack] = Counter()
        self._steps_without_gradient = 0
        self._has_learned = False
        self._num_samples = 0
        self._warned: set[str] = set()

    def on_step(self, record: StepRecord, state: TrainState) -> None:
        """Look at the step."""
        is_last = state.step == self._num_steps
        self._num_batches += len(record.lacks)
        self._lacks.update(lack for lack in record.lacks if lack is not None)
        self._look_at_cut_texts(record, state, is_last=is_last)
        if self._num_batches >= _FIRST_BATCHES or is_last:
            self._warn_of_lacks()
        if record.grad_norm == 0:
            self._steps_without_gradient += 1
        elif not record.skipped:
            self._steps_without_gradient, self._has_learned = 0, True
        enough = _STEPS_IN_A_ROW if self._has_learned else min(_FIRST_STEPS, self._num_steps)
        if self._steps_without_gradient >= enough:
            self._warn_of_gradient(state)

    def on_log(self, record: StepRecord, state: TrainState) -> None:
        """Nothing: every step was looked at."""

    def on_evaluation(self, metrics: Metrics, state: TrainState) -> None:
        """Nothing."""

    def _look_at_cut_texts(self, record: StepRecord, state: TrainState, *, is_last: bool) -> None:
        """Warn where the first steps cut a text in most of their rows. A run that goes on was looked at before."""
        if state.step > _FIRST_BATCHES:
            return
        self._num_samples += record.num_samples
        num_cut = state.num_truncated_texts
        if (state.step == _FIRST_BATCHES or is_last) and 2 * num_cut > self._num_samples:
            self._warn(
                "cut",
                f"{num_cut:,} texts of the first {self._num_samples:,} rows are longer than the model reads, and their"
                " ends are cut: texts that differ only there are one to it; raise max_length, or shorten the texts",
            )

    def _warn_of_lacks(self) -> None:
        num_lacking = self._lacks.total()
        if 2 * num_lacking <= self._num_batches:
            return
        lack = max(self._lacks, key=lambda lack: self._lacks[lack])
        effect = "pulled everything together" if lack.moves else "taught nothing"
        self._warn(
            "lack",
            f"{num_lacking} of the first {self._num_batches} batches {effect}: in them {lack.reason}; {lack.advice}",
        )

    def _warn_of_gradient(self, state: TrainState) -> None:
        if "lack" in self._warned or 2 * self._lacks.total() > self._num_batches:
            return  # which is the reason, and is told
        last = f"in each of the last {self._steps_without_gradient} steps"
        since = last if self._has_learned else "from the first step on"
        self._warn(
            "gradient",
            f"the gradient is exactly 0 {since} (step {state.step}), so nothing is learned: every row may already cost"
            " nothing (a margin that is kept, as with triplet), or what learns has no part in the"
            " loss (freeze, freeze_layers, learning_rates), or fp16 rounds it to 0 (mixed_precision: bf16 or no)",
        )

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("%s", text)
