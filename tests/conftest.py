"""What several tests need: running a script as a user does, and reading its event file back."""

import functools
import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lab.common.cli import launch
from lab.training import run as training

ROOT = Path(__file__).parent.parent
# One thread, as two processes of two threads each on two cores wait more than they compute; and
# the CPU also where there is a GPU, as what the tests compare bit for bit holds there.
ENV = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
TIMEOUT = 900  # seconds, against hanging: on an idle machine no call takes a tenth of it

# Examples from a fixed seed: a run of the tests does not depend on luck.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)
# A shell starts what goes to the background with SIGINT ignored, and processes pass that on: those
# that the tests start and interrupt have to hear it there, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores


def command_of(name, *flags):
    """The command of a script by its file, dqn_atari.py, or of a tool by its name, lab.sweep."""
    start = [str(ROOT / name)] if name.endswith(".py") else ["-m", name]
    return [sys.executable, *start, *map(str, flags)]


@pytest.fixture
def script(tmp_path):
    """Call a script or a tool with flags in an empty folder: the finished process."""

    def call(name, *flags, check=True, **popen):
        command = command_of(name, *flags)
        done = subprocess.run(
            command, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=TIMEOUT, **popen
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return call


def name_of(module):
    """As its user types it: dqn_atari.py, lab.sweep."""
    name = module.__name__.removesuffix(".__main__")
    return name if name.startswith("lab.") else f"{name}.py"


@pytest.fixture
def launched(tmp_path, monkeypatch, capfd):
    """Launch a script's module in this process, in an empty folder: the finished process."""

    def call(module, flags):
        command = [name_of(module), *map(str, flags)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", command)
        capfd.readouterr()
        start = getattr(module, "run", functools.partial(launch, module.main, module.Args))
        if module.__name__.endswith("_atari"):
            algorithm = module.__name__.removesuffix("_atari")
            given = (module.main, module.Args, module.check, algorithm)
            start = functools.partial(training.launch, *given)
        with pytest.raises(SystemExit) as exit_:
            start()
        return subprocess.CompletedProcess(command, exit_.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def in_process(launched):
    """The same as `script` in this process, which has everything imported: on the CPU."""

    def call(name, *flags, check=True):
        module = importlib.import_module(name.removesuffix(".py"))
        done = launched(module, ["--device", "cpu", *flags])
        assert not check or done.returncode == 0, done.stderr
        return done

    return call


@pytest.fixture
def refused(launched, tmp_path):
    """Call a script in this process with flags that it must refuse: one line and status 2."""

    def call(module, flags, message):
        done = launched(module, flags)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"{name_of(module)}: error: ")
        assert re.search(message, done.stderr), done.stderr
        assert list(tmp_path.iterdir()) == []

    return call


@pytest.fixture
def only_run(tmp_path):
    """The one run folder below tmp_path / runs."""

    def find(runs_dir="runs"):
        (folder,) = (tmp_path / runs_dir).iterdir()
        return folder

    return find


@pytest.fixture
def events():
    def load(folder):
        accumulator = EventAccumulator(str(folder), size_guidance=dict.fromkeys(SIZES, 0))
        accumulator.Reload()
        return accumulator

    return load


SIZES = ("scalars", "images", "tensors")

# How a step can end, at every position of a rollout of 5 steps: 1,024 rollouts.
EVERY_ENDING = list(itertools.product(("", "life lost", "game over", "truncated"), repeat=5))


def ended_steps(rng, endings):
    """For each rollout its steps: a random reward, how it ended, the value of its last state."""
    return [[(rng.normal(), ending, rng.normal()) for ending in rollout] for rollout in endings]
