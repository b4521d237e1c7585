"""The benchmark: it times what it says, and its numbers fit one another. No clock decides."""

import dataclasses
import json
import shlex
import statistics
import sys
import types

import pytest
import torch

import benchmark
import board
import scaling
import speed


@pytest.mark.parametrize("algorithm", speed.ALGORITHMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_are_those_of_the_script(algorithm, precision):
    """Learning moves every weight and acting none; both serve as many steps as the flags say."""
    args = speed.script_args(algorithm, "--precision", precision, "--latent-dim", "64")
    small = {"num_envs": 4, "num_steps": 4, "num_minibatches": 2, "metrics_samples": 512}
    args = dataclasses.replace(args, **{k: v for k, v in small.items() if hasattr(args, k)})
    kernel = speed.kernels(algorithm, args, torch.device("cpu"), num_actions=5)
    network = next(iter(kernel.parts.values()))

    def weights():
        return [weight.detach().clone() for weight in network.parameters()]

    before = weights()
    kernel.act()
    assert all(map(torch.equal, before, network.parameters()))
    kernel.learn()
    moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert all(moved)
    assert kernel.steps_per_learn == (4 if algorithm == "dqn" else 16)
    assert kernel.steps_per_act == kernel.steps_per_learn
    assert kernel.head.out_features == (1 if algorithm == "ppo" else 5)


def test_the_rate_is_that_between_two_points(tmp_path, monkeypatch):
    """After the start, which counts as little as what is not a point of speed."""
    clock = types.SimpleNamespace(time=lambda: now, monotonic=lambda: 0.0)
    monkeypatch.setattr(board, "time", clock)
    now = 1_000.0
    writer = board.Board(tmp_path)
    for step, now in ((100, 1_010.0), (1_000, 1_100.0), (1_500, 1_102.0), (3_000, 1_108.0)):
        writer.scalar("charts/SPS", 0.0, step)
        now += 0.5
        writer.scalar("charts/episodic_return", 0.0, step + 1)
    writer.flush()
    assert speed.rate_after(1_000, tmp_path) == pytest.approx(2_000 / 8)
    assert speed.rate_after(1_001, tmp_path) == pytest.approx(1_500 / 6)


def test_bound_and_ratios_follow_from_the_parts(tmp_path, monkeypatch, capsys):
    """A real benchmark of one script, in which a whole run is short."""
    monkeypatch.setitem(speed.WARM, "ppo", 1_024)
    monkeypatch.setitem(speed.MEASURED, "ppo", 1_024)
    args = benchmark.Args(
        algorithms=("ppo",),
        precisions=("fp32",),
        variants=("relu",),
        repeats=1,
        seconds=0.0,
        device="cpu",
        output_dir=str(tmp_path),
    )
    assert benchmark.main(args) == 0
    result = json.loads((tmp_path / "bound.json").read_text())
    of = {name: values["all"][0] for name, values in result["bound"]["ppo fp32 relu"].items()}
    parts = [1 / of[name] for name in ("emulator", "act", "learn")]
    assert of["bound"] == pytest.approx(1 / sum(parts))
    assert of["ratio"] == pytest.approx(of["whole"] / of["bound"])
    assert of["ratio_overlapped"] == pytest.approx(of["whole"] / of["bound_overlapped"])
    assert 0.1 < of["memory_gb"] < 10
    assert set(result["costs_seconds"]["ppo"]) == {"logging", "metrics", "checkpoint"}
    assert "torch" in result["machine"]["versions"]
    told = capsys.readouterr().out
    assert "| ppo       | fp32      | relu" in told
    assert "checkpoint" in told


def test_commands_are_compared_by_long_minus_short(monkeypatch):
    """Each in its turn, with the steps in its place; the time of the start cancels."""
    per_step, asked = {"fast": 0.001, "slow": 0.004}, []

    def pretend(command):
        asked.append(command)
        return 7 + per_step[command[0]] * int(command[1]), None

    monkeypatch.setattr(benchmark, "run_command", pretend)
    commands = ("slow one=slow {steps}", "fast=fast {steps}")
    args = benchmark.Args(part="compare", commands=commands, steps=(100, 300), repeats=2)
    found = benchmark.measure_commands(args)
    assert asked == 2 * [["slow", "100"], ["slow", "300"], ["fast", "100"], ["fast", "300"]]
    assert found["slow one"]["rate"] == pytest.approx([250, 250])
    assert found["fast"]["ratio"] == pytest.approx([4, 4])
    assert "4.00 (4.00 to 4.00)" in benchmark.commands_table(found)


def test_a_command_that_fails_says_so_in_one_line(script):
    failing = shlex.join([sys.executable, "-c", "import sys; sys.exit('no {steps} for you')"])
    flags = ("--part", "compare", "--commands", f"bad={failing}")
    done = script("benchmark.py", *flags, check=False)
    assert done.returncode == 2
    assert "ended with 1: no 2048 for you" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--part", "all"], "unknown --part 'all': choose one of bound, scaling, compare"),
        (["--algorithms", "dqn", "sac"], "unknown --algorithms 'sac': choose of dqn, ppo, pqn"),
        (["--variants", "elu"], "unknown --variants 'elu': choose of relu, tanh-hr"),
        (["--part", "compare"], "needs --commands"),
        (["--part", "compare", "--commands", "ls"], "it must be NAME=COMMAND with {steps}"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--env-id", "Breakot"], "did you mean Breakout"),
        (["--device", "tpu"], "unknown --device 'tpu': choose one of auto, cpu, cuda"),
        (["--output-dir", "/proc/none"], "--output-dir /proc/none"),
    ],
)
def test_bad_input_is_refused_before_anything_is_timed(flags, message, refused):
    refused(benchmark, flags, message)


def test_the_figure_shows_medians_and_ranges():
    found = {
        ("games", "ppo", 4): {"rate": [100.0, 300.0, 120.0]},
        ("games", "ppo", 1): {"rate": [50.0, 40.0, 60.0]},
        ("memory", "replay memory", 1_000): {"memory_gb": [0.5, 0.5, 0.5]},
    }
    figure = scaling.scaling_figure(found, "a machine")
    games, memory = figure.axes
    line, _, (bars,) = games.containers[0]
    assert line.get_xdata().tolist() == [1, 4]
    assert line.get_ydata().tolist() == [50, 120]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[40, 60], [100, 300]]
    assert "memory" in memory.get_ylabel()
    text = scaling.scaling_table(found, benchmark.told, benchmark.table)
    assert "120 (100 to 300)" in text
    assert statistics.median([100.0, 300.0, 120.0]) == 120
