"""Processes that load rows: how they end, what is told of it, and that none is left behind. Linux's /proc is read."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pictures import write_pairs
from tests.runs import is_running, wait_until
from tests.unit.data.plain_processor import PlainProcessor
from vembed.data.batches.loader import TrainingLoader
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.errors import ModelError, WorkerError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
ROOT = Path(__file__).parents[4]


class _TwoWordsError(Exception):
    """One that pickle cannot make again."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


_RAISED = {
    "ModelError": ModelError("the model reads no such thing"),
    "IndexError": IndexError("no such token"),
    "two words": _TwoWordsError("what", "happened"),
    "MemoryError": MemoryError(),
    "SystemExit": SystemExit(3),
}


def _number(item):
    return int(item.text.split()[2])  # query number 5 of a small data set


@dataclass(frozen=True)
class _Breaking(PlainProcessor):
    """Does something else than loading for one row: raises, or is killed by a signal."""

    raises: str | None = None
    signal: int | None = None

    def load(self, item, transform=None, draw=0):
        if _number(item) == 5:
            if self.signal is not None:
                os.kill(os.getpid(), self.signal)
                time.sleep(60)
            if self.raises is not None:
                raise _RAISED[self.raises]
        return super().load(item, transform, draw)


def _loader(folder, processor=None, *, num_rows=40, batch_size=4, num_workers=2, **values):
    path = write_pairs(folder, num_rows, "t2t")
    settings = DataSettings(num_workers=num_workers, retrieval_mode="t2t", **values)
    datasets = load_datasets(path, settings)
    return TrainingLoader(datasets, processor or PlainProcessor(), settings, batch_size=batch_size, seed=0)


def _workers():
    return sorted(multiprocessing.active_children(), key=lambda process: process.pid)


def _origins(batches):
    return [batch.origins for batch, _ in batches]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_a_killed_worker_is_told_in_one_line_and_takes_the_others_along(tmp_path, num_workers):
    loader = _loader(tmp_path, num_workers=num_workers)
    batches = loader.epoch(0)
    next(batches)
    workers = _workers()
    assert len(workers) == num_workers
    workers[-1].kill()
    with pytest.raises(WorkerError) as caught:
        list(batches)
    words = str(caught.value)
    assert words.startswith(
        f"the process {workers[-1].pid}, which loads rows, was killed by SIGKILL, as the system does"
    )
    assert "fewer num_workers" in words
    assert "\n" not in words
    assert not any(is_running(worker.pid) for worker in workers)
    assert _origins(loader.epoch(0)) == _origins(_loader(tmp_path, num_workers=0).epoch(0))  # with new ones
    loader.close()


def test_a_worker_that_died_between_epochs_is_told_of_in_the_next(tmp_path):
    loader = _loader(tmp_path)
    list(loader.epoch(0))
    _workers()[0].kill()
    with pytest.raises(WorkerError, match="SIGKILL"):
        list(loader.epoch(1))


def test_a_worker_may_be_killed_in_the_midst_of_a_result(tmp_path):
    """A result is more than its pipe holds, so that half of it has been sent."""
    path = write_pairs(tmp_path, 64, "i2i")
    settings = DataSettings(num_workers=1, retrieval_mode="i2i")
    loader = TrainingLoader(load_datasets(path, settings), _Large(), settings, batch_size=4, seed=0)
    batches = loader.epoch(0)
    next(batches)
    (worker,) = _workers()
    wait_until(lambda: "pipe_write" in Path(f"/proc/{worker.pid}/wchan").read_text() or _is_blocked(worker.pid))
    worker.kill()
    with pytest.raises(WorkerError, match="SIGKILL"):
        list(batches)


@dataclass(frozen=True)
class _Large(PlainProcessor):
    """Eight copies of each picture, enlarged."""

    def load(self, item, transform=None, draw=0):
        loaded = super().load(item, transform, draw)
        for image in loaded.images:
            image["pixel_values"] = image["pixel_values"].repeat(1, 40, 40)
        return loaded


def _is_blocked(pid):
    """True if all threads of a process wait, as far as Linux tells without naming the function."""
    states = [
        Path(task, "stat").read_text().rsplit(")", 1)[1].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    return set(states) == {"S"}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSEGV, "killed by SIGSEGV, as a library does over a damaged file; with PYTHONFAULTHANDLER=1"),
        (signal.SIGBUS, "killed by SIGBUS, as the system does when a file that is read was cut short"),
        (signal.SIGALRM, "killed by SIGALRM, which came from outside"),
        (signal.SIGRTMIN + 2, f"killed by signal {signal.SIGRTMIN + 2}, which came from outside"),
    ],
)
def test_a_worker_that_crashes_is_told_with_its_signal(tmp_path, number, words):
    with pytest.raises(WorkerError, match=words):
        list(_loader(tmp_path, _Breaking(signal=int(number))).epoch(0))


def test_what_a_worker_raises_is_raised_here(tmp_path):
    with pytest.raises(ModelError, match=r"^the model reads no such thing$"):
        list(_loader(tmp_path, _Breaking(raises="ModelError")).epoch(0))
    with pytest.raises(WorkerError, match="no memory left; fewer num_workers"):
        list(_loader(tmp_path, _Breaking(raises="MemoryError")).epoch(0))
    with pytest.raises(SystemExit):
        list(_loader(tmp_path, _Breaking(raises="SystemExit")).epoch(0))
    with pytest.raises(IndexError, match=r"^no such token$") as caught:
        list(_loader(tmp_path, _Breaking(raises="IndexError")).epoch(0))
    assert "in load\n" in str(caught.value.__cause__)  # the worker's traceback
    with pytest.raises(RuntimeError, match=r"^_TwoWordsError: what happened$"):
        list(_loader(tmp_path, _Breaking(raises="two words")).epoch(0))
    assert not _workers()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU])
def test_workers_leave_signals_to_their_parent(tmp_path, number):
    loader = _loader(tmp_path)
    batches = loader.epoch(0)
    origins = _origins([next(batches)])
    for worker in _workers():
        os.kill(worker.pid, number)
    assert origins + _origins(batches) == _origins(_loader(tmp_path, num_workers=0).epoch(0))
    assert len(_workers()) == 2
    loader.close()


def test_closing_ends_busy_workers_at_once(tmp_path):
    loader = _loader(tmp_path, _Breaking(signal=signal.SIGCONT), num_workers=3)  # its worker sleeps a minute
    next(loader.epoch(0))
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 5
    assert not _workers()


def test_workers_end_with_a_loader_that_nobody_holds(tmp_path):
    loader = _loader(tmp_path)
    next(loader.epoch(0))
    assert len(_workers()) == 2
    del loader
    assert not _workers()


def test_an_epoch_that_was_left_cannot_go_on_after_another_or_the_end(tmp_path):
    loader = _loader(tmp_path)
    first, second = loader.epoch(0), loader.epoch(1)
    next(first), next(second)
    with pytest.raises(RuntimeError, match="another epoch begun"):
        list(first)
    loader.close()
    with pytest.raises(RuntimeError, match="the loader was closed"):
        list(second)


def test_a_system_without_room_for_workers_is_told_in_one_line(tmp_path):
    loader = _loader(tmp_path, num_workers=30)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as lowest:  # files that are opened take the lowest free number
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno() + 12, hard))
    try:
        with pytest.raises(WorkerError, match=r"^30 processes that load rows cannot start: .*; fewer num_workers"):
            next(loader.epoch(0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not _workers()


_PARENT = """
import multiprocessing, sys, time
from pathlib import Path
from tests.unit.data.batches.test_worker_process import _Sleepy, _loader
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    loader = _loader(Path(sys.argv[2]), _Sleepy(), num_workers=3)
    batches = loader.epoch(0)
    next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    {end}
"""


@dataclass(frozen=True)
class _Sleepy(PlainProcessor):
    """Takes its time over every third row."""

    def load(self, item, transform=None, draw=0):
        if _number(item) % 3 == 0:
            time.sleep(0.1)
        return super().load(item, transform, draw)


def _run_parent(tmp_path, end, method="fork"):
    script = tmp_path / "parent.py"
    script.write_text(_PARENT.format(end=end))
    command = [sys.executable, str(script), method, str(tmp_path / "data")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    return parent, [int(word) for word in parent.stdout.readline().split()]


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(method, marks=pytest.mark.slow) for method in ("spawn", "forkserver"))]
)
def test_workers_end_with_a_parent_that_is_killed(tmp_path, method):
    parent, workers = _run_parent(tmp_path, "time.sleep(600)", method)
    assert len(workers) == 3, parent.communicate()
    parent.kill()
    parent.communicate()
    wait_until(lambda: not any(map(is_running, workers)), seconds=5)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise IndexError('index 7 is out of range')", 1),
        pytest.param("raise MemoryError", 1, marks=pytest.mark.slow),
        pytest.param("sys.exit(5)", 5, marks=pytest.mark.slow),
        pytest.param("raise KeyboardInterrupt", -signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_parent_with_workers_ends_at_once_whatever_it_raises(tmp_path, end, code):
    parent, workers = _run_parent(tmp_path, end)
    _, errors = parent.communicate(timeout=20)
    assert parent.returncode == code, errors
    assert len(workers) == 3
    assert not any(map(is_running, workers))


def test_a_fork_of_the_parent_that_ends_leaves_the_workers(tmp_path):
    loader = _loader(tmp_path)
    batches = loader.epoch(0)
    next(batches)
    child = multiprocessing.get_context("fork").Process(target=loader.close)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert len(list(batches)) == 9
    loader.close()
