"""The progress line, by a clock that is set by hand."""

import contextlib
import os
import pty
import signal
import subprocess
import termios

import pytest
from algorithms import PLAIN, ROLLOUT
from conftest import ENV, TIMEOUT, command_of

from lab.training.progress import Progress
from lab.training.signals import CAN_RESUME


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def progress(clock):
    """Of a run of 10 million steps."""
    return Progress(10_000_000, clock=lambda: clock[0])


def test_speed_is_that_of_the_last_seconds(progress, clock, capsys):
    """1,000 steps/s for a minute, then 100/s: after 20 s more the line says 100/s."""
    step, returns = 0, [1.0, 3.0]
    for second in range(100):
        clock[0] += 1.0
        step += 1_000 if second < 60 else 100
        rate = progress.show(step, returns if step > 6_000 else [])
    assert rate == pytest.approx(100)
    lines = capsys.readouterr().err.rstrip().split("\n")
    assert "  0%  1,000/10,000,000 steps  1,000/s  ETA 2:46:39" in lines[0]
    assert "31,000/10,000,000 steps  1,000/s  ETA 2:46:09" in lines[1]
    assert "100/s  ETA 1 day, 3:36" in lines[-1]
    assert "return" not in lines[0]
    assert "return 2.0 (last 2 games)" in lines[-1]
    assert len(lines) == 4  # every half minute


def test_the_speed_of_a_resumed_run_is_that_since_it_goes_on(progress, clock):
    progress.start_from(5_000_000)
    clock[0] += 2.0
    assert progress.show(5_000_600, []) == pytest.approx(300)


def show_on_terminal(flags, cwd, stop_at=None):
    """What a terminal shows of a real run, line by line; SIGTERM when this text has come."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    command = command_of("ppo_atari.py", *flags, "--device", "cpu")
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    process = subprocess.Popen(command, cwd=cwd, env=ENV, **streams)
    os.close(slave)
    content = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while data := os.read(master, 4096):
            content += data
            if stop_at is not None and stop_at in content:
                process.send_signal(signal.SIGTERM)
                stop_at = None
    os.close(master)
    lines = []
    for line in content.decode().split("\n"):
        shown = ""
        for part in line.split("\r"):  # each goes on from the first column
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return process.wait(timeout=TIMEOUT), lines


def test_on_a_terminal_nothing_is_said_behind_the_bar(tmp_path):
    """Of a run that is stopped, and goes on: every text begins its own line."""
    flags = ("--total-timesteps", 10**6, *ROLLOUT, *PLAIN)
    status, first = show_on_terminal(flags, tmp_path, stop_at=b"/1,000,000")
    assert status == CAN_RESUME
    (folder,) = (tmp_path / "runs").iterdir()
    status, second = show_on_terminal(("--resume", folder), tmp_path, stop_at=b"/1,000,000")
    assert status == CAN_RESUME
    for lines, texts in (
        (first, ["Breakout, ppo, relu-z32, seed 1: ", "SIGTERM: stopping ", "stopped at "]),
        (second, ["restoring the run", "resumed at ", "SIGTERM: stopping ", "stopped at "]),
    ):
        for text in texts:
            assert next(line for line in lines if text in line).startswith(text), lines
        assert sum("/1,000,000" in line for line in lines) == 1  # the bar, as it was at the end
