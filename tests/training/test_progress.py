"""The progress line, by a clock that is set by hand."""

import signal

import pytest

from lab.training.progress import Progress


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


def test_a_run_that_stops_says_until_when_it_goes_on(progress, clock, capsys):
    """At once, and for a rollout that takes long every half minute."""
    progress.start_round()
    clock[0] += 95.0
    progress.start_round()
    progress.say_stopping(signal.SIGTERM)
    for step in range(9):
        clock[0] += 10.0
        progress.keep_saying_stopping(step)
    said = capsys.readouterr().err.strip().split("\n")
    assert "SIGTERM: stopping before the next rollout, in about 95 s" in said[0]
    assert len([line for line in said if "stopping: " in line]) == 2


def test_the_speed_of_a_resumed_run_is_that_since_it_goes_on(progress, clock):
    progress.start_from(5_000_000)
    clock[0] += 2.0
    assert progress.show(5_000_600, []) == pytest.approx(300)
