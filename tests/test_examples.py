"""The examples: that they run as their first lines say, and what they rest on."""

import csv
import subprocess
import sys

import pytest
import torch
from conftest import ENV, ROOT
from torch import nn

from examples import cartpole_ppo, compare_layers
from hadamard import HadamardLinear


def test_the_agent_trains_and_counts_every_step_of_a_game_once(capsys):
    torch.manual_seed(1)
    agent = cartpole_ppo.Agent()
    before = [parameter.clone() for parameter in agent.parameters()]
    returns = cartpole_ppo.train(agent, seed=1, total_timesteps=1100, learning_rate=1e-3)
    assert capsys.readouterr().out.splitlines()[-1].startswith("1,024 steps, mean return")
    # 4 games of 256 steps in all: those that go on at the end have not been counted.
    assert 0 <= 1024 - sum(returns) < 1024
    assert min(returns) >= 8  # nobody can drop the pole sooner
    for parameter, old in zip(agent.parameters(), before, strict=True):
        assert not torch.equal(parameter, old)
        assert parameter.isfinite().all()


def test_the_example_runs_as_its_docstring_says():
    command = [sys.executable, "-m", "examples.cartpole_ppo", "--total-timesteps", "512"]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("512 steps, mean return of the last 20 games")


def test_the_hidden_layers_are_those_that_the_readme_shows():
    layer = cartpole_ppo.hidden(4, 64)
    assert isinstance(layer, HadamardLinear)
    assert layer.bias.view(2, 64).tolist() == [[0.0] * 64, [2.0] * 64]


def test_cleanrls_layer_init_on_a_hadamard_layer_is_told():
    layer = cartpole_ppo.layer_init(HadamardLinear(4, 64))
    with pytest.raises(ValueError, match="reset_parameters"):
        layer(torch.zeros(1, 4))


def test_the_comparison_trains_every_variant_in_both_tasks(capsys):
    args = compare_layers.Args(seeds=1, learning_rates=(1e-3, 2e-3), steps=512, fit_steps=2)
    compare_layers.main(args)
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    expected = [
        (name, *run)
        for name in compare_layers.VARIANTS
        for run in (("cartpole", "0.001"), ("cartpole", "0.002"), ("fit", "0.01"))
    ]
    assert [(row["variant"], row["task"], row["learning_rate"]) for row in rows] == expected
    assert all(float(row["score"]) > (8 if row["task"] == "cartpole" else 0) for row in rows)


@pytest.mark.parametrize("name", compare_layers.VARIANTS)
def test_each_variant_is_what_its_name_says(name):
    torch.manual_seed(0)
    layer = compare_layers.VARIANTS[name](64, 64)
    if name == "tanh":
        assert isinstance(layer[0], nn.Linear)
        return
    branches = 1 if name.startswith("tanh") else 3 if name.startswith("3") else 2
    assert (layer.branches, layer.layer_norm) == (branches, "layer_norm" in name)
    bias = layer.norm_bias.flatten() if name == "HR, gated, layer_norm" else layer.bias
    first, *others = bias.detach().split(64)
    gate = {"gate 1": 1.0, "gated": 2.0, "gate 3": 3.0}
    gate = next((bias for key, bias in gate.items() if key in name), 0.0)
    if "torch" in name:
        assert first.unique().numel() > 1
    elif "1.5" in name:
        assert set(layer.bias.tolist()) == {-1.5, 1.5}
    else:
        assert not first.any()
        assert all((other == gate).all() for other in others)
    below = compare_layers.VARIANTS[name](4, 64)
    assert isinstance(below, nn.Sequential) == ("last alone" in name)


@pytest.mark.parametrize(
    ("example", "flags", "message"),
    [
        ("cartpole_ppo", ["--learning-rate", "nan"], "--learning-rate"),
        ("cartpole_ppo", ["--seed", "-1"], "--seed must be between 0 and"),
        ("cartpole_ppo", ["--total-timesteps", "0"], "--total-timesteps must be at least 512"),
        ("cartpole_ppo", ["--bogus"], "--bogus"),
        ("compare_layers", ["--variants", "relu"], "unknown variant 'relu'"),
        ("compare_layers", ["--learning-rates", "0"], "--learning-rates must lie between 0 and 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(example, flags, message):
    command = [sys.executable, "-m", f"examples.{example}", *flags]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
