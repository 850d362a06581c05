"""Ctrl-C, SIGTERM and their like: finish the step, leave a checkpoint, then stop. A second one stops at once.

Not every second signal is one: a terminal that closes sends SIGHUP from the system and from the shell, `timeout` and
schedulers send SIGTERM to a process and to its group, and SIGXCPU comes every second.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vembed.utils.signals import STOP_SIGNALS

_log = logging.getLogger(__name__)
_SAME_REQUEST_SECONDS = 1.0


class StopRequested(BaseException):
    """Raised where the run can be saved and resumed; not an Exception, so that no handler between swallows it."""


class StopSignal:
    """The stop that was asked for, if any: `number` is the signal's, None before one came."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._may_raise = False
        self._came_at = 0.0

    def check(self) -> None:
        """Raise StopRequested if a signal has come. Called between steps."""
        if self.number is not None:
            raise StopRequested

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A signal raises at once in this block, which must change nothing that a checkpoint holds (an evaluation)."""
        self._may_raise = True
        try:
            self.check()
            yield
        finally:
            self._may_raise = False

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: notes the first signal; raises KeyboardInterrupt at a second one that is meant so."""
        if self.number is not None:
            if self._is_impatient(number):
                raise KeyboardInterrupt
            return
        self.number, self._came_at = number, time.monotonic()
        _log.warning("stopping after this step, with a checkpoint; Ctrl-C once more stops at once")
        if self._may_raise:
            raise StopRequested

    def _is_impatient(self, number: int) -> bool:
        if number == signal.SIGINT:
            return True
        return number == signal.SIGTERM and time.monotonic() - self._came_at >= _SAME_REQUEST_SECONDS


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Catch the signals while the block runs. In a thread, which cannot, signals act as they did before.

    So do SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU where they were not left to the system: `nohup` has the first ignored,
    and goes on having it so.
    """
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    taken = {number: handler for number, handler in before.items() if _is_ours(number, handler)}
    try:
        for number in taken:
            signal.signal(number, stop.receive)
        yield stop
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def _is_ours(number: int, handler: object) -> bool:
    """True for a signal to be caught. A handler of None was set by other code than Python's, and cannot be put back."""
    if number in (signal.SIGINT, signal.SIGTERM):
        return handler is not None
    return handler == signal.SIG_DFL
