import io
import json
import os
import pty
import subprocess
import sys
import zlib
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from rich.text import Text

from vembed.errors import CheckpointError
from vembed.training import callbacks
from vembed.training.callbacks import LogLines, MetricsFile, open_callbacks, progress_display, truncate_metrics
from vembed.training.loop import StepRecord
from vembed.training.plan import Plan
from vembed.training.run.folder import RunFolder
from vembed.training.state import LogWindow, TrainState

CPU = torch.device("cpu")
PLAN = Plan(
    batch_size=8,
    num_batches_per_step=1,
    steps_per_epoch=4,
    num_steps=8,
    logging_steps=2,
    eval_steps=None,
    save_steps=None,
)
RECORD = StepRecord(
    loss=2.0,
    learning_rates={"text": 1e-5, "vision": 2e-5, "heads": 1e-3, "scale": 1e-3},
    grad_norm=0.5,
    temperature=0.05,
    num_samples=8,
    load_seconds=1.0,
    step_seconds=3.0,
    skipped=False,
)


def test_a_line_tells_the_mean_since_the_line_before(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", PLAN, CPU)
    state = TrainState(step=6, num_samples=48, window=LogWindow(5.0, 2, 16, 4.0))
    file.on_log(RECORD, state)
    file.on_evaluation({"t2i": {"mrr": 0.25}}, state)
    line, evaluation = (json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line.pop("peak_memory_mib") > 50
    assert line == {
        "step": 6,
        "epoch": 1.5,
        "loss": 2.5,
        "learning_rate": 2e-5,
        "learning_rates": RECORD.learning_rates,
        "temperature": 0.05,
        "grad_norm": 0.5,
        "samples_per_second": 4.0,
        "samples": 48,
        "skipped_steps": 0,
        "truncated_texts": 0,
    }
    assert evaluation == {"step": 6, "eval": {"t2i": {"mrr": 0.25}}}
    assert state.num_metrics_lines == 2


def test_the_state_survives_json_exactly():
    state = TrainState(step=3, window=LogWindow(0.1 + 0.2, 1, 8, 1 / 3), num_truncated_texts=4)
    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def known(lines: bytes) -> TrainState:
    """The state of a checkpoint that was written after these lines."""
    return TrainState(num_metrics_lines=lines.count(b"\n"), metrics_checksum=zlib.crc32(lines))


def test_lines_after_the_resumed_step_are_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    truncate_metrics(file, TrainState())
    assert not file.exists()
    file.write_bytes(b"1\n2\n3\n")
    for state in (known(b"1\n2\n"), TrainState(num_metrics_lines=2, metrics_checksum=None)):  # of an earlier version
        assert truncate_metrics(file, state) == [b"1\n", b"2\n"]
        assert file.read_bytes() == b"1\n2\n"
        file.write_bytes(b"1\n2\n3")  # of a run that was killed


@pytest.mark.parametrize("found", [b"1\n", b"1\n2", b"1\n3\n", b"1\n\xff\n", b"\n\n", b"1\n \n2\n"])
def test_other_lines_than_those_that_were_written_are_refused(tmp_path, found):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(found)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged: .* the 2 lines .*delete the file"):
        truncate_metrics(file, known(b"1\n2\n"))
    assert file.read_bytes() == found


def test_a_pipe_in_the_place_of_the_lines_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be read: it is a pipe"):
        truncate_metrics(tmp_path / "metrics.jsonl", TrainState())


def test_lines_that_are_gone_are_told_and_begin_anew(tmp_path, caplog):
    state = known(b"1\n2\n")
    assert truncate_metrics(tmp_path / "metrics.jsonl", state) == []
    assert "metrics.jsonl is gone" in caplog.text
    assert state == TrainState()


def test_the_state_knows_the_lines_that_were_written(tmp_path):
    file, state = tmp_path / "metrics.jsonl", TrainState()
    for step in (2, 4):
        state.step = step
        MetricsFile(file, PLAN, CPU).on_evaluation({"t2i": {"mrr": 0.25}}, state)
    assert state.metrics_checksum == zlib.crc32(file.read_bytes())
    assert len(truncate_metrics(file, TrainState.from_dict(json.loads(json.dumps(state.to_dict()))))) == 2


def test_trackers_are_not_given_a_damaged_line_and_without_them_it_is_not_read(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"step": 2, "lo\n')
    state = TrainState(step=2, num_metrics_lines=2, metrics_checksum=None)
    with (
        pytest.raises(CheckpointError, match=r"metrics\.jsonl:2 is damaged, and trackers get its figures again"),
        open_callbacks(run, PLAN, CPU, state=state, trackers={"any": nullcontext}),
    ):
        pass
    with open_callbacks(run, PLAN, CPU, state=state, trackers={}) as callbacks:
        assert [type(one).__name__ for one in callbacks] == ["MetricsFile", "LogLines", "LearningWatch"]


def test_a_file_that_cannot_be_written_is_told_in_plain_words(tmp_path):
    file = MetricsFile(tmp_path / "no" / "metrics.jsonl", PLAN, CPU)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl could not be written"):
        file.on_evaluation({}, TrainState())


def test_log_lines_without_a_terminal(caplog):
    caplog.set_level("INFO")
    with progress_display(PLAN, CPU, 0) as display:
        assert isinstance(display, LogLines)
        state = TrainState(step=2, window=LogWindow(5.0, 2, 16, 4.0))
        display.on_step(RECORD, state)
        display.on_log(RECORD, state)
        display.on_evaluation({"t2i": {"recall@1": 0.5, "hit_rate@1": 0.75, "mrr": 0.25}}, state)
    first, second = caplog.messages
    assert first.startswith("step 2/8  loss 2.5000  rate 2.00e-05  4.0 samples/s  peak ")
    assert second == "step 2  evaluation of t2i: recall@1 0.5000  mrr 0.2500"


@pytest.mark.slow
def test_a_bar_on_a_terminal():
    """In a process whose standard error is a terminal; log lines stand above the bar and tear nothing."""
    program = """
import logging
from tests.unit.training.test_callbacks import CPU, PLAN, RECORD
from vembed.training.callbacks import progress_display
from vembed.training.state import TrainState
from vembed.utils.logging import configure_logging

configure_logging()
with progress_display(PLAN, CPU, 3) as bar:
    bar.on_step(RECORD, TrainState(step=4))
    logging.getLogger("vembed").info("a fact")
    bar.on_step(RECORD, TrainState(step=8))
"""
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen([sys.executable, "-c", program], stderr=side, stdout=subprocess.PIPE, env=environment)
    os.close(side)
    shown = read_all(main)
    assert process.communicate()[0] == b""
    assert process.returncode == 0, shown
    assert "a fact" in shown
    assert "8/8" in shown
    assert "loss 2.0000  rate 2.00e-05  2.0 samples/s  peak" in shown


@pytest.mark.parametrize(("width", "facts"), [(80, ["samples/s"]), (130, ["rate 2.00e-05", "peak"])])
def test_a_bar_fits_the_terminal(width, facts, monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=width)
    monkeypatch.setattr(callbacks, "console", lambda: terminal)
    plan, late = replace(PLAN, num_steps=123_456), TrainState(step=98_765)
    with progress_display(plan, CPU, 98_764) as bar:
        bar.on_step(RECORD, late)
    lines = Text.from_ansi(shown.getvalue().replace("\r", "\n")).plain.splitlines()
    line = [line for line in lines if "loss" in line][-1]
    assert len(line) <= width
    assert "…" not in line
    assert "98765/123456" in line
    assert "━━━━━━━━" in line
    assert all(fact in line for fact in ["loss 2.0000", *facts])


def read_all(descriptor):
    parts = []
    while True:
        try:
            part = os.read(descriptor, 4096)
        except OSError:  # the other end is closed
            part = b""
        if not part:
            os.close(descriptor)
            return b"".join(parts).decode()
        parts.append(part)
