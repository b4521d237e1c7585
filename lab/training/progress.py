"""The progress line of a run: a bar in a terminal, a line now and then in a file."""

import collections
import contextlib
import datetime
import signal
import sys
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from lab.common.cli import say
from lab.training.signals import describe_leaving

LINE_EVERY = 30.0  # seconds between two lines where there is no terminal
SPEED_OVER = 10.0  # seconds over which the speed is measured


class Progress:
    """Show steps, speed, time left, score and state of the layer, up to `total` agent steps.

    `clock` tells the time in seconds from any moment on.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.perf_counter):
        self.total, self._clock = total, clock
        self.layer = ""  # the state of the layer, when it was last measured
        self._rates = collections.deque([(self._clock(), 0)], maxlen=200)
        self._round_start: float | None = None
        self._round_seconds = 0.0
        self._next_line = 0.0
        self._bar: tqdm | None = None  # from the first line on: what is said before has no bar

    def start_from(self, step: int):
        """Measure the speed from this agent step on, where a run is resumed."""
        self._rates[0] = (self._clock(), step)

    def start_round(self):
        """Note that a rollout begins: a stop waits for about as long as the last one took."""
        now = self._clock()
        if self._round_start is not None:
            self._round_seconds = now - self._round_start
        self._round_start = now

    def show(self, step: int, returns: collections.abc.Collection[float]) -> float:
        """Show the line; return the speed of the last seconds, in agent steps per second."""
        now = self._clock()
        while len(self._rates) > 2 and now - self._rates[0][0] > SPEED_OVER:
            self._rates.popleft()
        then, step_then = self._rates[0]
        self._rates.append((now, step))
        rate = (step - step_then) / max(now - then, 1e-9)
        if sys.stderr.isatty():
            with contextlib.suppress(OSError):
                self._bar = self._bar or self._make_bar()
                self._bar.n = min(step, self.total)
                self._bar.set_description_str(self._status(step, returns, rate, brief=True))
        elif now >= self._next_line or step >= self.total:
            self._next_line = now + LINE_EVERY
            share = min(step / self.total, 1.0)
            say(f"{share:4.0%}  {self._status(step, returns, rate)}", sys.stderr)
        return rate

    def _make_bar(self) -> tqdm:
        return tqdm(
            total=self.total,
            bar_format="{percentage:3.0f}% {desc} {bar}",  # the bar takes what is left of the line
            dynamic_ncols=True,
        )

    def _status(self, step, returns, rate, brief: bool = False) -> str:
        """Format one line; the brief one fits a terminal of 80 columns."""
        left = max(self.total - step, 0) / max(rate, 1e-9)
        eta = datetime.timedelta(seconds=int(min(left, 3e9)))
        status = f"{step:,}/{self.total:,}" + ("" if brief else " steps")
        status += f"  {rate:,.0f}/s  ETA {eta}"
        if returns:
            status += f"  return {np.mean(returns):.1f}"
            status += "" if brief else f" (last {len(returns)} games)"
        return status + self.layer

    def say_stopping(self, number: int):
        """Say that this signal has come, and how long the run still takes."""
        self._next_line = self._clock() + LINE_EVERY
        within = f", in about {self._round_seconds:.0f} s" if self._round_seconds > 1 else ""
        say(
            f"{signal.Signals(number).name}: stopping before the next rollout{within}"
            f"{describe_leaving()}",
            sys.stderr,
        )

    def keep_saying_stopping(self, step: int):
        """Say now and then that the run is still stopping, for a rollout that takes long."""
        if self._clock() > self._next_line:
            self._next_line = self._clock() + LINE_EVERY
            say(f"stopping: {step:,} agent steps, in the last rollout", sys.stderr)

    def close(self):
        """Leave the bar as it is; the terminal may have gone before."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()
