import os
import signal
import threading

import pytest

from vembed.training import interrupts
from vembed.training.interrupts import StopRequested, stop_signal


def test_a_signal_waits_for_the_check():
    with stop_signal() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(StopRequested):
            stop.check()


def test_a_signal_stops_at_once_what_nothing_depends_on():
    def interrupted_work(stop):
        with stop.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on")

    with stop_signal() as stop:
        with pytest.raises(StopRequested):
            interrupted_work(stop)
        assert stop.number == signal.SIGINT


def test_a_signal_from_before_is_not_forgotten():
    with stop_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopRequested), stop.interruptible():
            pytest.fail("went on")


def test_a_second_signal_stops_at_once():
    with stop_signal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_what_closes_a_terminal_or_ends_a_job_is_waited_for_too(name):
    """These come twice, or every second, and never mean that the run should stop without a checkpoint."""
    with stop_signal() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.Signals[name])
        assert stop.number == signal.Signals[name]
        with pytest.raises(StopRequested):
            stop.check()
    assert signal.getsignal(signal.Signals[name]) == signal.SIG_DFL


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_what_nohup_ignores_or_a_program_handles_is_left_to_them(name):
    number, seen = signal.Signals[name], []
    for handler in (signal.SIG_IGN, lambda number, _frame: seen.append(number)):
        signal.signal(number, handler)
        try:
            with stop_signal() as stop:
                os.kill(os.getpid(), number)
                stop.check()
            assert signal.getsignal(number) == handler
        finally:
            signal.signal(number, signal.SIG_DFL)
    assert seen == [number]


def test_a_sigterm_that_comes_twice_at_once_is_one(monkeypatch):
    """`timeout` sends it to its child and to the group of its child."""
    with stop_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        monkeypatch.setattr(interrupts, "_SAME_REQUEST_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_signal():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_thread_trains_without_handlers():
    seen = []

    def work():
        with stop_signal() as stop:
            stop.check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
