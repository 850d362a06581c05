"""One process has a folder at a time, in real processes; what is dead holds nothing."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vembed.errors import CheckpointError, UsageError
from vembed.utils import lock as lock_module
from vembed.utils.lock import LOCK_FILE, STALE_SECONDS, lock_folder
from vembed.utils.lock_file import Owner

ROOT = Path(__file__).resolve().parents[3]
# Holds the folder until its standard input ends. `errno` is what the file system answers to a lock, 0: it has locks.
HOLDER = """
import fcntl, sys
from pathlib import Path
from vembed.errors import UsageError
from vembed.utils import lock
folder, number, heartbeat, children = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
if number:
    def no_locks(*_):
        raise OSError(number, "no locks here")
    fcntl.flock = no_locks
lock._HEARTBEAT_SECONDS = heartbeat
try:
    with lock.lock_folder(folder, "output_dir") as held:
        if children:
            import multiprocessing, time
            context = multiprocessing.get_context("fork")
            begun = context.Semaphore(0)
            def work():
                begun.release()
                time.sleep(600)
            for _ in range(children):
                child = context.Process(target=work, daemon=True)
                child.start()
                begun.acquire()
                print(child.pid, flush=True)
        print("held", flush=True)
        sys.stdin.read()
        held.check()
except UsageError as error:
    print("refused:", error, flush=True)
"""


class Holder:
    def __init__(self, folder, *, number=0, heartbeat=15.0, children=0):
        words = [sys.executable, "-c", HOLDER, str(folder), str(number), str(heartbeat), str(children)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(words, text=True, cwd=ROOT, **pipes)
        self.lines = []

    def first_line(self):
        """Waits for its word: held, or refused."""
        while not self.lines or self.lines[-1].strip().isdigit():
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.lines.append(line)
        return self.lines[-1].strip()

    def children(self):
        return [int(line) for line in self.lines if line.strip().isdigit()]

    def end(self):
        _, errors = self.process.communicate(timeout=60)
        return errors

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        for child in self.children():
            os.kill(child, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()


@pytest.fixture
def start():
    """Starts holders, which are gone after the test."""
    started = []

    def start_one(folder, **options):
        started.append(Holder(folder, **options))
        return started[-1]

    yield start_one
    for one in started:
        one.close()


@pytest.fixture
def hold(start):
    """Starts one that gets the folder."""

    def start_one(folder, **options):
        one = start(folder, **options)
        assert one.first_line() == "held"
        return one

    return start_one


def write_lock(folder, *, machine="another", age=0.0, **changes):
    """A lock as a process of another machine left it whose last heartbeat is so many seconds old."""
    values = {"host": "node7", "process": 4711, "started": "2026-01-01T00:00:00+00:00", "machine": machine}
    file = folder / LOCK_FILE
    file.write_text(json.dumps({**values, "token": "0" * 32, **changes}))
    then = time.time() - age
    os.utime(file, (then, then))
    return file


def take(folder):
    with lock_folder(folder, f"output_dir {folder}"):
        assert (folder / LOCK_FILE).is_file()


def test_the_end_of_a_run_takes_no_lock_of_another_process_away(tmp_path):
    """Also not one that says nobody's name yet, as in the moment in which it is made."""
    with lock_folder(tmp_path, "output_dir"):
        (tmp_path / LOCK_FILE).unlink()
        (tmp_path / LOCK_FILE).touch()
    assert (tmp_path / LOCK_FILE).exists()
    (tmp_path / LOCK_FILE).unlink()
    with lock_folder(tmp_path, "output_dir"):
        pass
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_folder_that_is_held_is_refused_with_the_name_of_its_process(tmp_path, hold):
    other = hold(tmp_path)
    with pytest.raises(UsageError) as caught:
        take(tmp_path)
    words = str(caught.value)
    assert words.startswith(f"output_dir {tmp_path}: process {other.process.pid} on host ")
    assert "started 20" in words
    assert "writes there" in words
    assert "\n" not in words
    other.end()
    take(tmp_path)


def test_the_lock_goes_with_the_process_that_is_killed(tmp_path, hold):
    other = hold(tmp_path)
    other.kill()
    assert (tmp_path / LOCK_FILE).read_text()
    take(tmp_path)


def test_forked_workers_that_outlive_a_killed_process_do_not_keep_its_lock(tmp_path, hold):
    other = hold(tmp_path, children=2)
    children = list(other.children())
    assert len(children) == 2
    for child in children:
        os.kill(child, signal.SIGSTOP)  # so that they live on for sure
    other.kill()
    take(tmp_path)
    for child in children:
        os.kill(child, 0)  # raises if it is gone


def test_a_fork_that_ends_does_not_release_the_lock(tmp_path, start):
    with lock_folder(tmp_path, "folder") as lock:
        child = multiprocessing.get_context("fork").Process(target=lock.release)
        child.start()
        child.join()
        assert child.exitcode == 0
        assert (tmp_path / LOCK_FILE).is_file()
        assert start(tmp_path).first_line().startswith("refused")


def test_a_second_run_of_the_same_process_is_refused_too(tmp_path, start):
    with lock_folder(tmp_path, "folder"):
        with pytest.raises(UsageError, match=f"process {os.getpid()} on host"):
            take(tmp_path)
        assert start(tmp_path).first_line().startswith("refused")


def test_reading_the_files_of_the_folder_does_not_lose_the_lock(tmp_path, start):
    """Record locks would go with the first file that is closed, as of a tracker that uploads the folder."""
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run", "folder"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        assert start(tmp_path / "run").first_line().startswith("refused")
    take(tmp_path / "copy")  # of a dead run, as it seems


def test_of_many_that_start_at_once_one_wins(tmp_path, start):
    for number in (0, errno.ENOLCK):
        folder = tmp_path / str(number) / "new"
        starters = [start(folder, number=number) for _ in range(6)]
        words = [one.first_line() for one in starters]
        assert sorted(word.partition(":")[0] for word in words) == ["held", *["refused"] * 5], words
        for one in starters:
            one.end()
        assert not folder.parent.exists()


def test_a_left_lock_file_blocks_nobody(tmp_path):
    for content in ("", "{", '{"host": 3}', "\0" * 9, "[" * 100_000):
        (tmp_path / LOCK_FILE).write_text(content)
        take(tmp_path)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_file_that_is_something_else_is_refused_and_stays_as_it_is(tmp_path, kind):
    file, precious = tmp_path / LOCK_FILE, tmp_path / "precious"
    precious.write_text("1")
    {"link": lambda: file.symlink_to(precious), "pipe": lambda: os.mkfifo(file), "folder": file.mkdir}[kind]()
    with pytest.raises(UsageError, match="folder cannot be written"), lock_folder(tmp_path, "folder"):
        pass
    assert precious.read_text() == "1"


def test_a_folder_that_was_made_goes_if_it_stays_empty_and_stays_if_not(tmp_path):
    take(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with lock_folder(tmp_path / "a" / "b", "folder"):
        (tmp_path / "a" / "b" / "file").write_text("")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "file"]


def test_a_living_process_of_another_machine_is_refused_though_the_lock_seems_free(tmp_path):
    """As where a file system keeps the locks of each machine to itself."""
    file = write_lock(tmp_path, age=30)
    before = file.read_text()
    with pytest.raises(
        UsageError, match=r"process 4711 on host node7, .*last sign of life is 3\d s old.*again in \d\d s"
    ):
        take(tmp_path)
    assert file.read_text() == before


@pytest.mark.parametrize("age", [STALE_SECONDS + 5, -STALE_SECONDS - 5])
def test_a_dead_process_of_another_machine_is_taken_over_with_a_word(tmp_path, caplog, age):
    caplog.set_level(logging.INFO, "vembed")
    write_lock(tmp_path, age=age)
    take(tmp_path)
    assert "taken over from process 4711 on host node7" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_an_old_heartbeat_of_a_process_that_has_the_lock_changes_nothing(tmp_path, hold):
    hold(tmp_path, heartbeat=600)
    os.utime(tmp_path / LOCK_FILE, (1.0, 1.0))
    with pytest.raises(UsageError, match="writes there"):
        take(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_without_locks_the_heartbeat_decides(tmp_path, number, start, hold):
    first = hold(tmp_path, number=number)
    assert start(tmp_path, number=number).first_line().startswith(f"refused: output_dir: process {first.process.pid} ")
    first.kill()
    assert "start again in 1" in start(tmp_path, number=number).first_line()
    os.utime(tmp_path / LOCK_FILE, (1.0, 1.0))
    heir = hold(tmp_path, number=number)
    assert "taken over from process" in heir.end()
    assert list(tmp_path.iterdir()) == []


def test_one_heir_takes_over_from_a_dead_process_where_there_are_no_locks(tmp_path, start):
    write_lock(tmp_path, age=500)
    starters = [start(tmp_path, number=errno.ENOLCK) for _ in range(5)]
    words = [one.first_line() for one in starters]
    assert sorted(word.partition(":")[0] for word in words) == ["held", *["refused"] * 4], words
    for one in starters:
        one.end()
    assert list(tmp_path.iterdir()) == []


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_heartbeat_goes_on(tmp_path, hold):
    file = tmp_path / LOCK_FILE
    hold(tmp_path, heartbeat=0.05)
    os.utime(file, (1.0, 1.0))
    wait_until(lambda: file.stat().st_mtime > time.time() - 60)
    assert file.read_text().endswith("}\n")  # a beat leaves what the file says


def test_a_lock_file_that_is_deleted_comes_back(tmp_path, monkeypatch, start):
    monkeypatch.setattr(lock_module, "_HEARTBEAT_SECONDS", 0.05)
    with lock_folder(tmp_path, "folder") as lock:
        (tmp_path / LOCK_FILE).unlink()
        lock.check()
        wait_until((tmp_path / LOCK_FILE).exists)
        wait_until(lambda: (tmp_path / LOCK_FILE).read_text().endswith("}\n"))
        assert start(tmp_path).first_line().startswith("refused")
    assert list(tmp_path.iterdir()) == []


def test_who_lost_the_folder_learns_it_before_it_writes(tmp_path):
    with lock_folder(tmp_path, "folder") as lock:
        lock.check()
        other = write_lock(tmp_path)
        with pytest.raises(CheckpointError, match=r"process 4711 on host node7.* has taken the folder over"):
            lock.check()
    assert other.exists()  # it is the other's


def test_a_heartbeat_that_cannot_be_written_is_said_once_and_ends_nothing(tmp_path, monkeypatch, caplog):
    beats = []

    def full(*_):
        beats.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock_module, "_HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(os, "utime", full)
    with lock_folder(tmp_path, "folder"):
        wait_until(lambda: len(beats) > 3)
    assert caplog.text.count("the heartbeat of") == 1
    assert not [thread for thread in threading.enumerate() if thread.name == LOCK_FILE]


def test_a_full_disk_at_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UsageError, match="No space left"):
        take(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_an_owner_that_another_program_wrote_cannot_lead_elsewhere(tmp_path):
    write_lock(tmp_path, age=500, token="../../../escaped")
    take(tmp_path)
    write_lock(tmp_path, host="\x1b[31mred")
    with pytest.raises(UsageError, match=r"host \\x1b\[31mred"):
        take(tmp_path)
    assert Owner.here().machine != Owner.here().token


def test_flock_is_what_is_asked(tmp_path):
    with lock_folder(tmp_path, "folder"), (tmp_path / LOCK_FILE).open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_on_a_file_that_was_just_deleted_is_not_taken_for_one(tmp_path, monkeypatch, start):
    """Who held it deletes it as it ends, between this process's opening and its locking."""
    real, num_calls = lock_module.system_lock, []

    def late(descriptor):
        num_calls.append(1)
        if len(num_calls) == 1:
            (tmp_path / LOCK_FILE).unlink()
        return real(descriptor)

    monkeypatch.setattr(lock_module, "system_lock", late)
    with lock_folder(tmp_path, "folder"):
        assert len(num_calls) == 2
        assert start(tmp_path).first_line().startswith("refused")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"^output_dir .* cannot be made: .*Not a directory"):
        take(tmp_path / "file" / "run")
