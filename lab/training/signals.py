"""The signals that ask a run to stop."""

import os
import signal
import sys
from collections.abc import Callable

from lab.common.cli import say

# SIGUSR1 and SIGUSR2: what Slurm is usually asked to send before a time limit.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Exit status of a run that was asked to stop and can go on: EX_TEMPFAIL of sysexits.h.
CAN_RESUME = 75


def list_stops() -> list[signal.Signals]:
    """Return the signals that ask to stop: those that this process does not ignore.

    One that was ignored at the start stays ignored: SIGHUP under nohup, Ctrl-C in a script's
    background job.
    """
    return [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]


def describe_leaving() -> str:
    """Return the words on what another Ctrl-C does, or none where it is ignored."""
    is_heard = signal.SIGINT in list_stops()
    return " (a further Ctrl-C: at once)" if is_heard else ""


class StopSignals:
    """Note that a signal asked to stop, for the loop to look at; restore the handlers at `close`.

    `received` is the number of the newest signal in STOPS, or None. `on_stop(number)` is called
    when one comes. After the first one, Ctrl-C ends the process at once, if it is not ignored.
    """

    def __init__(self, on_stop: Callable[[int], None]):
        self.received: int | None = None
        self.leave_at_once = ""  # while there is nothing to save: what to say before leaving
        self._on_stop = on_stop
        self._before = {number: signal.signal(number, self._receive) for number in list_stops()}

    def _receive(self, number, frame):
        if self.leave_at_once:
            say(f"\n{signal.Signals(number).name}: {self.leave_at_once}", sys.stderr)
            os._exit(CAN_RESUME)  # the emulator's call that is under way is not waited for
        self.received = number
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._on_stop(number)

    def close(self):
        """Give the signals back to the handlers of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
