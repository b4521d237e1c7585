"""Where the numbers of a run go, beside TensorBoard: Weights & Biases."""

import importlib.machinery
import sys
import types

import numpy as np
from algorithms import PLAIN

import ppo_atari


class FakeTracker(types.ModuleType):
    """Stands in for wandb, which keeps what it is given."""

    def __init__(self, broken=False):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.logged, self.axes, self.ended, self.broken = [], {}, [], broken

    def init(self, **config):
        if self.broken:
            raise RuntimeError("no API key")
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
