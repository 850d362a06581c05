"""The callbacks of a run: metrics.jsonl, a progress bar or log lines, and the trackers that were asked for."""

import json
import logging
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vembed.errors import CheckpointError
from vembed.training.loop import Callback, StepRecord
from vembed.training.plan import Plan
from vembed.training.run.folder import RunFolder
from vembed.training.run.learning_watch import LearningWatch
from vembed.training.state import Metrics, TrainState
from vembed.training.trackers.registry import OpenTracker, TrackedRun
from vembed.utils.files import atomic_file, disk_errors
from vembed.utils.json_files import MOST_BYTES, read_json_lines
from vembed.utils.logging import console
from vembed.utils.memory import peak_memory_mib
from vembed.utils.untrusted import library_errors, read_regular_file

Line = Mapping[str, Any]  # Any: JSON; of metrics.jsonl

_log = logging.getLogger(__name__)
_SHOWN_METRICS = ("recall@", "mrr")
_REMEDY = ", and trackers get its figures again; take report_to out, or mend the line"
_WIDE_COLUMNS = 130  # columns of a terminal from which on the bar shows every fact


@contextmanager
def open_callbacks(
    run: RunFolder, plan: Plan, device: torch.device, *, state: TrainState, trackers: Mapping[str, OpenTracker]
) -> Iterator[Sequence[Callback]]:
    """The callbacks of a run that goes on from `state`; those that hold files are closed when the block ends."""
    truncate_metrics(run.metrics, state)
    lines = read_json_lines(run.metrics, CheckpointError, remedy=_REMEDY) if trackers else []
    with ExitStack() as stack:
        opened = [
            stack.enter_context(open_tracker(TrackedRun(run.tracker(name), plan, device, state.step, lines)))
            for name, open_tracker in trackers.items()
        ]
        display = stack.enter_context(progress_display(plan, device, state.step))
        yield [MetricsFile(run.metrics, plan, device), *opened, display, LearningWatch(plan.num_steps)]


class MetricsFile:
    """metrics.jsonl: a line whenever a run logs, with the mean loss since the line before, and one per evaluation."""

    def __init__(self, file: Path, plan: Plan, device: torch.device) -> None:
        self._file = file
        self._plan = plan
        self._device = device

    def on_step(self, record: StepRecord, state: TrainState) -> None:
        """Nothing: a line is a mean over steps."""

    def on_log(self, record: StepRecord, state: TrainState) -> None:
        """Write a line."""
        self._write(log_line(record, state, self._plan, self._device), state)

    def on_evaluation(self, metrics: Metrics, state: TrainState) -> None:
        """Write the evaluation."""
        self._write(evaluation_line(metrics, state), state)

    def _write(self, line: Line, state: TrainState) -> None:
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        with disk_errors(self._file), self._file.open("ab") as stream:
            stream.write(data)
        state.num_metrics_lines += 1
        if state.metrics_checksum is not None:
            state.metrics_checksum = zlib.crc32(data, state.metrics_checksum)


def log_line(record: StepRecord, state: TrainState, plan: Plan, device: torch.device) -> Line:
    """A line of metrics.jsonl on the steps since the line before: means over them, last rates, counts of the run."""
    return {
        "step": state.step,
        "epoch": round(state.step / plan.steps_per_epoch, 4),
        "loss": state.window.mean_loss if math.isfinite(state.window.mean_loss) else None,
        "learning_rate": main_learning_rate(record),
        "learning_rates": record.learning_rates,
        "temperature": record.temperature,
        "grad_norm": None if record.skipped else record.grad_norm,
        "samples_per_second": round(state.window.samples_per_second, 2),
        "peak_memory_mib": round(peak_memory_mib(device), 1),
        "samples": state.num_samples,
        "skipped_steps": state.num_skipped_steps,
        "truncated_texts": state.num_truncated_texts,
    }


def evaluation_line(metrics: Metrics, state: TrainState) -> Line:
    """A line of metrics.jsonl on an evaluation."""
    return {"step": state.step, "eval": metrics}


def truncate_metrics(file: Path, state: TrainState) -> list[bytes]:
    """Cut metrics.jsonl to the lines that a resumed checkpoint knows of, and return them.

    Raises CheckpointError when they are not those that were written. Where the file is gone, the lines begin anew.
    """
    with library_errors(CheckpointError, f"{file} cannot be read"):
        data = read_regular_file(file, max_bytes=MOST_BYTES) if os.path.lexists(file) else b""
    lines = data.splitlines(keepends=True)
    kept = lines[: state.num_metrics_lines]
    if not lines:
        if state.num_metrics_lines:
            _log.warning("%s is gone, or empty: the figures of the steps so far are lost", file)
        state.num_metrics_lines, state.metrics_checksum = 0, 0
    elif len(kept) < state.num_metrics_lines or state.metrics_checksum not in (None, zlib.crc32(b"".join(kept))):
        raise CheckpointError(
            f"{file} is damaged: it does not begin with the {state.num_metrics_lines} lines that the run wrote up to"
            " its checkpoint; put them back, or delete the file and go on without them"
        )
    if len(lines) > len(kept):
        with atomic_file(file) as new:
            new.write_bytes(b"".join(kept))
    return kept


class LogLines:
    """The run as log lines, for a log file or a pipe."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self._plan = plan
        self._device = device

    def on_step(self, record: StepRecord, state: TrainState) -> None:
        """Nothing: a line per step would be too many."""

    def on_log(self, record: StepRecord, state: TrainState) -> None:
        """Log a line."""
        facts = _status(state.window.mean_loss, record, state.window.samples_per_second, self._device)
        _log.info("step %d/%d  %s", state.step, self._plan.num_steps, facts)

    def on_evaluation(self, metrics: Metrics, state: TrainState) -> None:
        """Log one line per data set."""
        log_evaluation(metrics, state)


class ProgressBar:
    """The run as a bar on a terminal."""

    def __init__(self, progress: Progress, plan: Plan, device: torch.device, step: int) -> None:
        self._progress = progress
        self._device = device
        self._wide = progress.console.width >= _WIDE_COLUMNS
        self._task = progress.add_task("training", total=plan.num_steps, completed=step, facts="")

    def on_step(self, record: StepRecord, state: TrainState) -> None:
        """Move the bar."""
        speed = record.num_samples / (record.load_seconds + record.step_seconds)
        whole = _status(record.loss, record, speed, self._device)
        facts = whole if self._wide else f"loss {record.loss:.4f}  {speed:.1f} samples/s"
        self._progress.update(self._task, completed=state.step, facts=facts)

    def on_log(self, record: StepRecord, state: TrainState) -> None:
        """Nothing: the bar shows it."""

    def on_evaluation(self, metrics: Metrics, state: TrainState) -> None:
        """Log the figures above the bar."""
        log_evaluation(metrics, state)


@contextmanager
def progress_display(plan: Plan, device: torch.device, step: int) -> Iterator[Callback]:
    """A bar where standard error is a terminal, log lines elsewhere."""
    if not console().is_terminal:
        yield LogLines(plan, device)
        return
    with _progress() as progress:
        yield ProgressBar(progress, plan, device, step)


def log_evaluation(metrics: Metrics, state: TrainState) -> None:
    """One log line per data set, of the figures that are looked at first; metrics.jsonl has all."""
    for name, values in metrics.items():
        shown = [f"{metric} {value:.4f}" for metric, value in values.items() if metric.startswith(_SHOWN_METRICS)]
        _log.info("step %d  evaluation of %s: %s", state.step, name, "  ".join(shown))


def main_learning_rate(record: StepRecord) -> float:
    """The highest rate of the towers; of all other parts where no tower is trained."""
    towers = [rate for part, rate in record.learning_rates.items() if part in ("text", "vision")]
    return max(towers) if towers else max(record.learning_rates.values())


def _progress() -> Progress:
    wide = console().width >= _WIDE_COLUMNS
    first, last = TextColumn("{task.description}"), TextColumn("{task.fields[facts]}")
    times = [TimeElapsedColumn(), TimeRemainingColumn()] if wide else [TimeRemainingColumn()]
    return Progress(first, BarColumn(20 if wide else 12), MofNCompleteColumn(), *times, last, console=console())


def _status(loss: float, record: StepRecord, samples_per_second: float, device: torch.device) -> str:
    return (
        f"loss {loss:.4f}  rate {main_learning_rate(record):.2e}  {samples_per_second:.1f} samples/s"
        f"  peak {peak_memory_mib(device):.0f} MiB"
    )
