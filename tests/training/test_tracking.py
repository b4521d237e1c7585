"""What is sent to Weights & Biases: every scalar, once, as the user's environment asks for it."""

import importlib.machinery
import os
import sys
import types

import numpy as np
import pytest
from algorithms import PLAIN

import ppo_atari
from lab.training.tracking import SENT, VARIABLES, Tracker, start_tracking


class FakeTracker(types.ModuleType):
    """Stands in for wandb, which keeps what it is given."""

    def __init__(self, broken=False):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.logged, self.axes, self.ended, self.broken = [], {}, [], broken
        self.started = {}  # what `init` was given

    def init(self, **config):
        if self.broken:
            raise RuntimeError("no API key")
        self.started = config
        return self

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code):
        self.ended.append(exit_code)


FEW = ("--total-timesteps", 1_024, "--num-envs", 2, "--num-steps", 256, "--update-epochs", 1)
FEW += ("--metrics-samples", 512, "--metrics-every", 1_024, "--track", *PLAIN)


def test_weights_and_biases_has_every_scalar_of_tensorboard(
    in_process, only_run, events, monkeypatch
):
    wandb = FakeTracker()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    in_process("ppo_atari.py", *FEW)
    log = events(only_run())
    expected = sorted(
        (tag, event.step, event.value)
        for tag in log.Tags()["scalars"]
        for event in log.Scalars(tag)
    )
    found = sorted(
        (tag, values["global_step"], float(np.float32(value)))
        for values in wandb.logged
        for tag, value in values.items()
        if tag != "global_step"
    )
    assert found == expected
    assert {"charts/episodic_return", "losses/entropy", "charts/SPS"} <= {tag for tag, *_ in found}
    assert wandb.axes["*"] == "global_step"
    assert wandb.ended == [0]


def test_where_weights_and_biases_refuses_nothing_is_left(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeTracker(broken=True))
    refused(
        ppo_atari, FEW, r"--track: Weights & Biases does not take the run \(no API key\); log in"
    )


def test_the_users_variables_say_where_a_run_goes(tmp_path, monkeypatch):
    """wandb reads them where it is told nothing else."""
    wandb = FakeTracker()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    config = {"flags": {"track": True}}
    folder = tmp_path / "Pong__1"
    folder.mkdir()
    start_tracking(folder, config)
    ours = {"project": "hadamard-rl", "name": "Pong__1", "id": "Pong__1", "resume": "allow"}
    assert wandb.started == ours | {"config": config}
    for key, variable in VARIABLES.items():
        monkeypatch.setenv(variable, "mine")
        start_tracking(folder, config)
        assert wandb.started == {k: v for k, v in ours.items() if k != key} | {"config": config}
        monkeypatch.delenv(variable)
    assert start_tracking(folder, {"flags": {"track": False}}) is None


def test_no_step_is_sent_twice_after_a_kill(tmp_path):
    """Killed at step 30, two of whose values were sent, and resumed from a checkpoint at 10."""
    wandb = FakeTracker()
    first = Tracker(wandb, tmp_path)
    for step in (5, 10, 20, 20, 30, 30):
        first.send({"x": float(len(wandb.logged))}, step)
    sent = list(wandb.logged)
    again = Tracker(wandb, tmp_path)
    for step in (20, 20, 30, 30):
        again.send({"x": -1.0}, step)
    assert wandb.logged == sent
    for step in (40, 40, 50):
        again.send({"x": 1.0}, step)
    assert [values["global_step"] for values in wandb.logged[len(sent) :]] == [40, 40, 50]
    again.finish(failed=False)
    third = Tracker(wandb, tmp_path)
    third.send({"x": 1.0}, 50)
    third.send({"x": 1.0}, 60)
    assert [values["global_step"] for values in wandb.logged[len(sent) :]] == [40, 40, 50, 60]


def test_a_run_that_plays_steps_again_sends_none_of_them(in_process, only_run, monkeypatch):
    """As after a kill: the newest checkpoint is gone, and it goes on from the one before."""
    wandb = FakeTracker()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    in_process("ppo_atari.py", *FEW)
    (only_run() / "checkpoint.pt").unlink()
    sent = list(wandb.logged)
    done = in_process("ppo_atari.py", "--resume", only_run())
    assert "resumed at 0 agent steps" in done.stdout
    assert wandb.logged == sent
    assert wandb.ended == [0, 0]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "words"])
def test_where_it_is_not_known_what_was_sent_all_is_sent_and_nothing_is_harmed(tmp_path, kind):
    elsewhere, folder = tmp_path / "mine.txt", tmp_path / "run"
    elsewhere.write_text("mine")
    folder.mkdir()
    path = folder / SENT
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("words")
    wandb = FakeTracker()
    tracker = Tracker(wandb, folder)
    tracker.send({"x": 1.0}, 10)
    tracker.finish(failed=False)
    assert wandb.logged == [{"x": 1.0, "global_step": 10}]
    assert elsewhere.read_text() == "mine"
