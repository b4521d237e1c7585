"""Signals that ask to stop: noted, passed on, and given back."""

import shlex
import signal
import subprocess

import pytest
from algorithms import PLAIN, ROLLOUT
from conftest import ENV, TIMEOUT, command_of

from lab.training.signals import CAN_RESUME, STOPS, StopSignals, describe_leaving


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


@pytest.mark.parametrize("ignored", STOPS)
def test_what_was_ignored_stays_ignored(ignored, capsys):
    """SIGHUP under nohup, SIGINT in a script's background job; the others are heard."""
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        stop = StopSignals(lambda number: None)
        signal.raise_signal(ignored)
        assert stop.received is None
        heard = signal.SIGTERM if ignored != signal.SIGTERM else signal.SIGHUP
        signal.raise_signal(heard)
        assert stop.received == heard
        signal.raise_signal(ignored)  # also after a first signal, when Ctrl-C ends at once
        assert (describe_leaving() == "") == (ignored == signal.SIGINT)
        stop.close()
        assert signal.getsignal(ignored) == signal.SIG_IGN
    finally:
        signal.signal(ignored, before)


SCRIPT = """
{start} {command} >out 2>err &
job=$!
while ! grep -q 'parameters on' out runs/logs/*.log 2>/dev/null; do sleep 0.1; done
sleep 1
kill -{number} $job
sleep 1
grep -q stopping out err runs/logs/*.log 2>/dev/null && exit 3
kill -TERM $job
wait $job
"""


@pytest.mark.long
@pytest.mark.parametrize("tool", ["ppo_atari.py", "lab.sweep"])
@pytest.mark.parametrize(("start", "number"), [("nohup", "HUP"), ("", "INT")])
def test_a_background_job_of_a_shell(tool, start, number, tmp_path):
    """A run and a sweep, started by a real shell, go on until a signal that is not ignored."""
    flags = ("--total-timesteps", 10**6, *ROLLOUT, "--device", "cpu")
    if tool == "lab.sweep":
        named = ("--algorithms", "ppo", "--variants", "relu-z32", "--seeds", 1, "--jobs", 1)
        flags = (*named, "--", *flags)
    else:
        flags += PLAIN
    command = shlex.join(command_of(tool, *flags))
    text = SCRIPT.format(start=start, command=command, number=number)
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=ENV, timeout=TIMEOUT)
    assert done.returncode == CAN_RESUME, (tmp_path / "err").read_text()
