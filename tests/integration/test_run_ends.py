"""However a run ends, its processes end too; and a signal, or a worker that the system killed, leaves a checkpoint."""

import multiprocessing
import os
import pty
import re
import signal
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.integration.test_train_resume import assert_same_run
from tests.pictures import write_pairs
from tests.runs import finish, start_training, wait_for, wait_until
from vembed.data.batches import worker_process
from vembed.errors import WorkerError
from vembed.trainer import Trainer
from vembed.training.trackers.registry import CallbackRegistry

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def settings(tmp_path_factory, clip_folder):
    """Thousands of steps with two workers, which nobody waits for."""
    return {
        "model_name": clip_folder,
        "data_path": write_pairs(tmp_path_factory.mktemp("data"), 24),
        "val_fraction": 0.25,
        "augment": "light",
        "num_workers": 2,
        "batch_size": 4,
        "epochs": 500,
        "logging_steps": 1,
        "save_steps": 100_000,
        "eval_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "warmup_ratio": 0.0,
        "report": False,
        "device": "cpu",
    }


def children_of(process):
    return psutil.Process(process.pid).children(recursive=True)


class _Fails:
    """A callback that fails in the place that it is told."""

    def __init__(self, place, error):
        self._place, self._error = place, error

    def on_step(self, record, state):
        self._fail("step")

    def on_log(self, record, state):
        pass

    def on_evaluation(self, metrics, state):
        self._fail("evaluation")

    def _fail(self, place):
        if place == self._place:
            assert len(multiprocessing.active_children()) == 2
            raise self._error


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("step", IndexError("index 7 is out of range")),
        ("evaluation", MemoryError()),
        ("step", SystemExit(4)),
        ("evaluation", KeyboardInterrupt()),
    ],
)
def test_an_exception_of_any_kind_ends_the_workers_though_its_traceback_is_kept(
    tmp_path, settings, monkeypatch, place, error
):
    """As in a notebook; and the same program can train again."""
    monkeypatch.setattr(CallbackRegistry, "_components", dict(CallbackRegistry._components))
    CallbackRegistry.register("fails", lambda _run: nullcontext(_Fails(place, error)))
    for number in (1, 2):
        run = {**settings, "report_to": ["fails"], "output_dir": str(tmp_path / f"run{number}")}
        with pytest.raises(type(error)) as caught:
            Trainer(run).train()
        assert caught.value is error
        assert multiprocessing.active_children() == []


def test_looking_at_a_run_leaves_no_workers(settings):
    trainer = Trainer(settings)
    trainer.overview()
    assert multiprocessing.active_children() == []
    trainer.measure(2)
    assert multiprocessing.active_children() == []
    assert trainer.grad_check(4).passed
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_run_goes_on_exactly_after_the_system_killed_one_of_its_workers(tmp_path, settings):
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    process = start_training({**settings, "output_dir": str(killed)})
    wait_for(killed / "metrics.jsonl", process)
    workers = children_of(process)
    assert len(workers) == 2
    workers[1].kill()
    code, output = finish(process, 60)
    assert code == 1, output
    assert "Traceback" not in output
    (line,) = (line for line in output.splitlines() if line.startswith("Error: "))
    found = re.fullmatch(
        rf"Error: the process {workers[1].pid}, which loads rows, was killed by SIGKILL, .*; fewer num_workers .*;"
        r" stopped after step (\d+) of 2500; .*checkpoint-\1 is written\. Continue with: vembed train .* latest",
        line,
    )
    assert found, line
    step = int(found[1])
    assert not any(worker.is_running() for worker in workers)

    again = {**settings, "resume_from_checkpoint": "latest", "max_steps": step + 4, "num_workers": 1}
    Trainer({**again, "output_dir": str(killed)}).train()
    Trainer({**again, "resume_from_checkpoint": None, "output_dir": str(straight)}).train()
    assert_same_run(straight, killed, last=f"checkpoint-{step + 4}")


def test_workers_that_die_before_the_first_step_leave_no_folder(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(worker_process, "_answer", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(WorkerError, match="killed by SIGKILL"):
        Trainer(settings).train(output_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(WorkerError, match="killed by SIGKILL"):
        Trainer(settings).measure(2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU])
def test_what_ends_a_job_leaves_a_checkpoint(tmp_path, settings, number):
    process = start_training({**settings, "output_dir": str(tmp_path / "run")}, start_new_session=True)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    for _ in range(2):  # as the system and a shell do when a terminal closes
        os.killpg(process.pid, number)
    code, output = finish(process, 60)
    assert code == 128 + number, output
    assert f"Error: stopped by {signal.Signals(number).name} after step" in output
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1


@pytest.mark.slow
def test_nohup_trains_to_the_end(tmp_path, settings):
    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    few = {**settings, "max_steps": 30, "output_dir": str(tmp_path / "run")}
    process = start_training(few, start_new_session=True, preexec_fn=ignore)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    os.killpg(process.pid, signal.SIGHUP)
    code, output = finish(process, 60)
    assert code == 0, output
    assert (tmp_path / "run" / "final").is_dir()


@pytest.mark.slow
def test_a_terminal_that_closes_leaves_a_checkpoint(tmp_path, settings):
    """The system sends SIGHUP, and nothing can be written any more: not the bar, nor the message of the end."""
    file, run = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump({**settings, "output_dir": str(run)}))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "vembed", "train", str(file)])
    os.set_blocking(terminal, False)
    wait_until(lambda: _drained(terminal) and (run / "metrics.jsonl").exists(), seconds=120)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert len(list(run.glob("checkpoint-*"))) == 1


def _drained(terminal):
    """Reads what was written, so that the program need not wait; True."""
    with suppress(BlockingIOError):
        os.read(terminal, 1_000_000)
    return True


@pytest.mark.slow
def test_ctrl_c_behind_a_pipe_whose_reader_it_ends_too_leaves_a_checkpoint(tmp_path, settings):
    """vembed train my.yaml 2>&1 | tee log"""
    process = start_training({**settings, "output_dir": str(tmp_path / "run")})
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.stderr.close()
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1
