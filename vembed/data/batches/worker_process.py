"""A process that loads blocks of rows, seen from both ends, and how it ends.

    the process that trains      the worker
    request(block)  ──────────►  main thread: load, pack
    receive()       ◄──────────  a thread that sends results, so that the next block is loaded meanwhile
                                 a thread that ends the worker when its parent has gone

Each worker has pipes of its own. One that is killed, be it in the midst of a result, ends its pipe, which is noticed
when its next result is due, and nobody waits for a lock that it held. torch's DataLoader instead raises at any point of
the main thread, an optimiser's update or the writing of a checkpoint included; and its workers outlive a parent that
was killed, for each waits to send the rest of its results through a queue whose reading end it holds itself.
"""

import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import NoReturn

import torch

from vembed.data.batches.blocks import Block, BlockLoader, LoadedRow, pack, unpack
from vembed.errors import VembedError, WorkerError
from vembed.utils.signals import ignore_stop_signals, stop_signals_blocked

_CHECK_SECONDS = 1.0
_EXIT_SECONDS = 5.0
LESS_MEMORY = "fewer num_workers need less memory, and so does a smaller batch_size"
_CRASH = "as a library does over a damaged file; with PYTHONFAULTHANDLER=1 in the environment it tells where"
_NOT_OURS = (
    'what it wrote before says why (where processes are not forked, a script needs `if __name__ == "__main__":`)'
)
_FAILED = b"failed "  # no pickle begins like this
_ADVICE = {
    "SIGKILL": f"as the system does when memory runs out; {LESS_MEMORY}",
    "SIGBUS": "as the system does when a file that is read was cut short, or shared memory is full",
    **dict.fromkeys(("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"), _CRASH),
}


class WorkerProcess:
    """The parent's end. After an error of `request` or `receive`, or an interrupt in it, it can only be killed."""

    def __init__(self, loader: BlockLoader) -> None:
        context = multiprocessing.get_context()
        self._request_end, self._requests = context.Pipe(duplex=False)
        self._results, self._result_end = context.Pipe(duplex=False)
        # A fork server's process is not our child: it knows us by multiprocessing's own pipe alone.
        parent = None if context.get_start_method() == "forkserver" else os.getpid()
        arguments = (loader, self._request_end, self._result_end, parent)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._num_waiting = 0  # results that were asked for
        self._num_dropped = 0  # those of them to be passed over

    def start(self) -> None:
        """Start the process. Raises OSError when the system has none left."""
        with stop_signals_blocked():
            self._process.start()
        self._request_end.close()
        self._result_end.close()  # the worker alone can write now: when it ends, so does the pipe

    def request(self, block: Block) -> None:
        """Ask for a block. Raises WorkerError when the worker is dead."""
        try:
            self._requests.send(block)
        except OSError:
            raise self._death() from None
        self._num_waiting += 1

    def drop_waiting(self) -> None:
        """Pass over the results that were asked for so far."""
        self._num_dropped = self._num_waiting

    def receive(self) -> tuple[Block, list[LoadedRow]]:
        """The next block that was asked for. Raises WorkerError when the worker is dead; else what it raised."""
        while self._num_dropped:
            self._receive()
            self._num_dropped -= 1
        packed = self._receive()
        if packed.startswith(_FAILED):
            _raise(packed.removeprefix(_FAILED))
        return unpack(packed)

    def kill(self) -> None:
        """End it at once: it holds nothing that could be left half done."""
        if self._process.pid is not None:
            self._process.kill()

    def join(self) -> None:
        """Wait until it is gone, after `kill`, and let go of the pipes."""
        if self._process.pid is not None:
            self._process.join()
        self._requests.close()
        self._results.close()

    def _receive(self) -> bytes:
        try:
            while not self._results.poll(_CHECK_SECONDS):
                if not self._process.is_alive() and not self._results.poll():
                    raise EOFError  # another process that was forked meanwhile keeps the pipe open
            packed = self._results.recv_bytes()
        except (EOFError, OSError):
            raise self._death() from None
        self._num_waiting -= 1
        return packed

    def _death(self) -> WorkerError:
        self._process.join(_EXIT_SECONDS)
        code = self._process.exitcode
        if code is not None and code < 0:
            name = next((number.name for number in signal.Signals if number == -code), f"signal {-code}")
            how, why = f"was killed by {name}", _ADVICE.get(name, "which came from outside")
        else:
            how, why = "closed its pipe" if code is None else f"ended with exit code {code}", _NOT_OURS
        return WorkerError(f"the process {self._process.pid}, which loads rows, {how}, {why}")


class _TracebackOfWorker(Exception):
    """Shows, as the cause of an error, where in the worker it arose."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _raise(failure: bytes) -> NoReturn:
    """Raise what `_failure` packed."""
    error, trace = pickle.loads(failure)
    if isinstance(error, VembedError):
        raise error
    if isinstance(error, MemoryError):
        raise WorkerError(f"a process that loads rows found no memory left; {LESS_MEMORY}")
    raise error from _TracebackOfWorker(trace)


def _work(
    loader: BlockLoader,
    requests: "Connection[object, Block]",
    results: "Connection[bytes, object]",
    parent: int | None,
) -> None:
    """The worker's end. parent: the process that started it, where that is the parent that the system knows."""
    # Ctrl-C and a job's SIGTERM reach every process; the parent finishes its step first, and needs its workers.
    ignore_stop_signals()
    # The parent's progress bar puts streams of its own there; a fork may find their lock held by a thread it has not.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)  # as many processes load as the machine is meant to
    outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_send_all, args=(outbox, results), daemon=True).start()
    while True:
        try:
            block = requests.recv()
        except EOFError:
            return
        outbox.put(_answer(loader, block))


def _end_with_parent(parent: int | None) -> None:
    """End this process within a second or two of its parent, whatever its other threads are doing.

    By both ways to know: the parent's pipe stays open as long as a worker that was forked later lives.
    """
    process = multiprocessing.parent_process()
    assert process is not None
    while process.is_alive() and parent in (None, os.getppid()):
        process.join(_CHECK_SECONDS)
    os._exit(1)


def _send_all(outbox: "queue.SimpleQueue[bytes]", results: "Connection[bytes, object]") -> None:
    while True:
        try:
            results.send_bytes(outbox.get())
        except OSError:
            os._exit(1)  # nobody is left who reads


def _answer(loader: BlockLoader, block: Block) -> bytes:
    """The packed block, or what was raised: a panic of a library written in Rust is no Exception."""
    try:
        return pack(loader, block)
    except BaseException as error:  # noqa: BLE001 - it goes on in the parent
        return _FAILED + _failure(error)


def _failure(error: BaseException) -> bytes:
    """The error and its traceback, as text. One that cannot be sent is told in words."""
    trace = "".join(traceback.format_exception(error))
    try:
        packed = pickle.dumps((error, trace))
        pickle.loads(packed)
    except Exception:  # noqa: BLE001 - an exception may refuse to be pickled by any other
        return pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return packed
