"""Signals that ask to stop: noted, passed on, and given back."""

import signal

import pytest

from lab.training.signals import STOPS, StopSignals


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_is_noted_and_the_handlers_come_back(number):
    before, heard = [signal.getsignal(one) for one in STOPS], []
    stop = StopSignals(heard.append)
    assert stop.received is None
    signal.raise_signal(number)
    assert (stop.received, heard) == (number, [number])
    with pytest.raises(KeyboardInterrupt):  # Ctrl-C after a first signal ends at once
        signal.raise_signal(signal.SIGINT)
    stop.close()
    assert [signal.getsignal(one) for one in STOPS] == before


def test_under_nohup_the_end_of_the_terminal_is_no_stop():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopSignals(lambda number: None)
        signal.raise_signal(signal.SIGHUP)
        assert stop.received is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        stop.close()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
