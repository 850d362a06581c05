"""Ctrl-C and SIGTERM: finish the step, leave a checkpoint, then stop. A second signal stops at once."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(BaseException):
    """Raised where the run can be saved and resumed; not an Exception, so that no handler between swallows it."""


class StopSignal:
    """The stop that was asked for, if any: `number` is the signal's, None before one came."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._may_raise = False

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
        """The signal handler: notes the first signal; raises KeyboardInterrupt at the second."""
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        _log.warning("stopping after this step, with a checkpoint; once more stops at once")
        if self._may_raise:
            raise StopRequested


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Catch the signals while the block runs. In a thread, which cannot, signals act as they did before."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
