import os
import signal
import threading

import pytest

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
