"""The signals by which a person, a terminal or a cluster asks a run to stop, and blocking them for a moment."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Ctrl-C; what every scheduler sends first; a terminal that closes; what Slurm's --signal, Grid Engine and LSF are told
# to send before a job's end; and the limit of CPU time. Not SIGQUIT (Ctrl-\), which asks for an end at once.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
STOP_SIGNALS = tuple(number for number in signal.Signals if number.name in _NAMES)  # those that the platform has


def ignore_stop_signals() -> None:
    """Leave the signals to the parent process; those that `stop_signals_blocked` kept out are forgotten."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Keep the signals out while the block runs, also of processes that start in it, until they ignore them."""
    if sys.platform == "win32":  # has no masks
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
