"""The benchmark: it times what it says, and its numbers fit one another. No clock decides."""

import dataclasses
import errno
import json
import shlex
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TIMEOUT
from interruptions import start_script
from torch.utils.tensorboard import SummaryWriter

import lab.bench.__main__ as benchmark
from lab.bench import bound, compare, scaling, timing
from lab.bench.flags import Args
from lab.common.cli import UsageError
from lab.training import checkpoint
from lab.training.algorithms import ALGORITHMS, script_args

TINY = ("--branches", "1", "--latent-dim", "8", "--num-envs", "1", "--metrics-samples", "512")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_are_those_of_the_script(algorithm, precision):
    """Learning moves every weight and acting none; both serve as many steps as the flags say."""
    args = script_args(algorithm, "--precision", precision, "--latent-dim", "64")
    small = {"num_envs": 4, "num_steps": 4, "num_minibatches": 2, "metrics_samples": 512}
    args = dataclasses.replace(args, **{k: v for k, v in small.items() if hasattr(args, k)})
    kernel = timing.make_kernels(algorithm, args, torch.device("cpu"), num_actions=5)
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


def test_the_rate_is_that_between_two_points(tmp_path):
    """After the start, which counts as little as what is not a point of timing."""
    with SummaryWriter(tmp_path) as writer:
        for step, now in ((100, 1_010.0), (1_000, 1_100.0), (1_500, 1_102.0), (3_000, 1_108.0)):
            writer.add_scalar("charts/SPS", 0.0, step, walltime=now)
            writer.add_scalar("charts/episodic_return", 0.0, step + 1, walltime=now + 0.5)
    assert timing.read_speed_points(1_001, tmp_path) == [(1_500, 1_102.0), (3_000, 1_108.0)]
    assert timing.WholeRun(timing.read_speed_points(1_000, tmp_path), 0.0).rate == pytest.approx(
        2_000 / 8
    )


WAITING = """
import pathlib, sys, time
x = b'x' * int(sys.argv[1])
pathlib.Path("ready").touch()
while not pathlib.Path("seen").exists():
    time.sleep(0.01)
"""


def test_peak_memory_is_that_of_the_command_alone(tmp_path, monkeypatch):
    """However much the process has that starts it. The command ends once it was looked at."""
    look = timing.read_peak_memory

    def look_and_tell(pid):
        is_ready = Path("ready").exists()
        found = look(pid)
        if is_ready:
            Path("seen").touch()
        return found

    def peak(size):
        (tmp_path / str(size)).mkdir()
        monkeypatch.chdir(tmp_path / str(size))
        return timing.run_command([sys.executable, "-c", WAITING, str(size)])[1]

    monkeypatch.setattr(timing, "read_peak_memory", look_and_tell)
    mine = np.ones(10**8)  # 0.8 GB
    small, large = peak(0), peak(300_000_000)
    assert mine.sum() == 10**8
    assert 0 < small < 0.1
    assert small + 0.29 < large < small + 0.35


def test_rates_of_runs_at_once_are_those_while_all_of_them_learn(monkeypatch):
    """One learns from second 0 to 20 with 10 steps/s, one from 10 to 30 with 30 steps/s."""
    runs = [[(100, 0.0), (200, 10.0), (300, 20.0)], [(0, 10.0), (600, 30.0)]]
    whole = iter([timing.WholeRun(points, 1.0) for points in runs])
    monkeypatch.setattr(scaling, "time_whole_run", lambda *args, **more: next(whole))
    assert scaling.measure_together("dqn", "cpu", 2) == pytest.approx(10 + 30)
    apart = iter(
        [timing.WholeRun([(0, 0.0), (9, 1.0)], 1.0), timing.WholeRun([(0, 2.0), (9, 3.0)], 1.0)]
    )
    monkeypatch.setattr(scaling, "time_whole_run", lambda *args, **more: next(apart))
    with pytest.raises(UsageError, match="never learned at the same time"):
        scaling.measure_together("dqn", "cpu", 2)


def test_bounds_follow_from_the_parts(monkeypatch):
    """With parts of known speed: one after the other, and with nothing that waits."""
    parts = {2: {"emulator": 0.001, "act": 0.002, "learn": 0.005}}
    parts[1] = {"emulator": 0.002, "act": 0.003, "learn": 0.005}
    whole = timing.WholeRun([(0, 0.0), (100, 1.0)], 1.5)
    monkeypatch.setitem(bound.VARIANTS, "relu", TINY)
    monkeypatch.setattr(bound, "time_whole_run", lambda *args: whole)
    monkeypatch.setattr(bound, "time_parts", lambda *args: parts[torch.get_num_threads()])
    one = {"algorithms": ("dqn",), "precisions": ("fp32",), "variants": ("relu",)}
    args = Args(**one, repeats=2, device="cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        *_, found = bound.measure_bound(args, torch.device("cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    of = found["dqn", "fp32", "relu"]
    assert of["emulator"] == pytest.approx([1000, 1000])
    assert of["bound"] == pytest.approx([125, 125])
    assert of["bound_overlapped"] == pytest.approx([200, 200])  # 2 cores, 100 steps/s each
    assert of["ratio"] == pytest.approx([0.8, 0.8])
    assert of["ratio_overlapped"] == pytest.approx([0.5, 0.5])


@pytest.mark.long
def test_a_real_benchmark(tmp_path, monkeypatch, capsys):
    """Of one script, small: every number is there, and kept."""
    small = ("--latent-dim", "8", "--num-envs", "4", "--num-steps", "16", "--branches", "1")
    monkeypatch.setitem(bound.VARIANTS, "relu", small)
    monkeypatch.setitem(timing.WARMUP_STEPS, "ppo", 128)
    monkeypatch.setitem(timing.MEASURED_STEPS, "ppo", 128)
    one = {"algorithms": ("ppo",), "precisions": ("fp32",), "variants": ("relu",)}
    args = Args(**one, repeats=1, seconds=0.0, device="cpu", output_dir=str(tmp_path))
    assert benchmark.main(args) == 0
    result = json.loads((tmp_path / "bound.json").read_text())
    of = {name: values["all"][0] for name, values in result["bound"]["ppo fp32 relu"].items()}
    assert all(value > 0 for value in of.values())
    assert 0.1 < of["memory_gb"] < 10
    costs = result["costs_seconds"]["ppo fp32 relu"]
    assert set(costs) == {"logging", "metrics", "checkpoint"}
    assert all(value["median"] > 0 for value in costs.values())
    assert "torch" in result["versions"]
    told = capsys.readouterr().out
    assert "| ppo       | fp32      | relu" in told
    assert "checkpoint" in told
    assert not list(Path().glob("benchmark-*"))


def test_a_checkpoint_of_dqn_is_timed_with_what_ten_minutes_bring(monkeypatch):
    """600 s at 8 steps/s are 4,800 transitions: the four whole segments of them, at each save."""
    written, save = [], checkpoint.Checkpoints.save

    def watched(self, step, state, memory=None):
        written.append(sorted(memory.dirty))
        save(self, step, state, memory)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", watched)
    monkeypatch.setitem(bound.VARIANTS, "relu", (*TINY, "--buffer-size", "6000"))
    args = Args(repeats=1, device="cpu")
    bound.measure_costs(("dqn", "fp32", "relu"), args, torch.device("cpu"), rate=8.0)
    assert written == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_commands_are_compared_by_long_minus_short(monkeypatch):
    """Each in its turn, with the steps in its place; the time of the start cancels."""
    per_step, asked = {"fast": 0.001, "slow": 0.004}, []

    def pretend(command):
        asked.append(command)
        return 7 + per_step[command[0]] * int(command[1]), 0.0

    monkeypatch.setattr(compare, "run_command", pretend)
    commands = ("slow one=slow {steps}", "fast=fast {steps}")
    args = Args(part="compare", commands=commands, steps=(100, 300), repeats=2)
    *_, found = compare.measure_commands(args)
    assert asked == 2 * [["slow", "100"], ["slow", "300"], ["fast", "100"], ["fast", "300"]]
    assert found["slow one"]["rate"] == pytest.approx([250, 250])
    assert found["fast"]["ratio"] == pytest.approx([4, 4])
    assert "4.00 (4.00 to 4.00)" in compare.format_commands(found)
    per_step["slow"] = 0.0
    with pytest.raises(UsageError, match="slow one: 300 steps took no longer than 100"):
        next(compare.measure_commands(args))


def test_a_command_that_fails_says_so_in_one_line(launched):
    failing = shlex.join([sys.executable, "-c", "import sys; sys.exit('no {steps} for you')"])
    flags = ("--part", "compare", "--commands", f"bad={failing}")
    done = launched(benchmark, [*flags, "--device", "cpu"])
    assert done.returncode == 2
    assert "ended with 1: no 2048 for you" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_benchmark_that_is_ended_leaves_nothing(tmp_path):
    """SIGTERM in the middle of a command: it and what it started end, too."""
    waiting = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(1000)"
    waits = shlex.join([sys.executable, "-c", waiting, str(tmp_path / "started")])
    command = shlex.join(["sh", "-c", f"{waits}; true"])
    flags = ("--part", "compare", "--output-dir", "new", "--commands", f"a={command} {{steps}}")
    process = start_script("lab.bench", flags, tmp_path)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(bytes(tmp_path / "started") in of for of in running)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "started"]


def test_what_cannot_be_kept_is_printed_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "run_command", lambda command: (float(command[1]), 0.0))

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(benchmark, "write_json", full)
    flags = {"part": "compare", "commands": ("a=b {steps}",), "steps": (1, 3)}
    args = Args(**flags, device="cpu", output_dir=str(tmp_path / "new"))
    with pytest.raises(UsageError, match=r"No space left on device; the tables above are not kept"):
        benchmark.main(args)
    assert "1 (1 to 1)" in capsys.readouterr().out


def test_seconds_are_those_of_a_call_of_a_known_length():
    """A clock that only the timed calls move: a warm-up is not counted, and nothing else is."""
    now = 0.0

    def call():
        nonlocal now
        now += 0.25 if now else 100.0

    def clock():
        return now

    assert timing.time_call(call, 2.0, torch.device("cpu"), clock) == 0.25

    envs = types.SimpleNamespace(num_envs=8, step=lambda actions: call())
    envs.single_action_space = types.SimpleNamespace(n=4)
    assert timing.time_emulator(envs, 2.0, clock) == 0.25 / 8
    kernel = types.SimpleNamespace(act=call, steps_per_act=5, learn=call, steps_per_learn=2)
    parts = bound.time_parts(kernel, envs, 2.0, torch.device("cpu"), clock)
    assert parts == {"emulator": 0.25 / 8, "act": 0.05, "learn": 0.125}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--part", "all"], "unknown --part 'all': choose one of bound, scaling, compare"),
        (["--algorithms", "dqn", "sac"], "unknown --algorithms 'sac': choose of dqn, ppo, pqn"),
        (["--variants", "elu"], "unknown --variants 'elu': choose of relu, tanh-hr"),
        (["--part", "compare"], "needs --commands"),
        (["--part", "compare", "--commands", "ls"], "it must be NAME=COMMAND with {steps}"),
        (["--part", "compare", "--commands", "=ls {steps}"], "it must be NAME=COMMAND"),
        (["--part", "compare", "--commands", "a=ls '{steps}"], "No closing quotation; close it"),
        (["--part", "compare", "--commands", "a=ls {steps}", "a=ps {steps}"], "called 'a'; give"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--env-id", "Breakot"], "did you mean Breakout"),
        (["--device", "tpu"], "unknown --device 'tpu': choose one of auto, cpu, cuda"),
        (["--output-dir", "/proc/none"], "--output-dir /proc/none"),
    ],
)
def test_bad_input_is_refused_before_anything_is_timed(flags, message, refused):
    refused(benchmark, flags, message)


def test_scaling_is_drawn_and_kept(tmp_path, monkeypatch, capsys):
    """Medians and ranges in the figure, every value in the file, a row for each point."""
    found = {
        ("games", "ppo", 4): {"rate": [100.0, 300.0, 120.0]},
        ("games", "ppo", 1): {"rate": [50.0, 40.0, 60.0]},
        ("memory", "replay memory", 1_000): {"memory_gb": [0.5, 0.5, 0.5]},
    }
    figure = scaling.draw_scaling(found, "a machine")
    games, memory = figure.axes
    line, _, (bars,) = games.containers[0]
    assert line.get_xdata().tolist() == [1, 4]
    assert line.get_ydata().tolist() == [50, 120]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[40, 60], [100, 300]]
    assert "memory" in memory.get_ylabel()

    monkeypatch.setattr(benchmark, "measure_scaling", lambda *args: iter([found]))
    args = Args(part="scaling", device="cpu", output_dir=str(tmp_path / "new" / "folder"))
    assert benchmark.main(args) == 0
    result = json.loads((tmp_path / "new" / "folder" / "scaling.json").read_text())
    assert result["scaling"]["games ppo 4"]["rate"]["all"] == [100, 300, 120]
    assert (tmp_path / "new" / "folder" / "scaling.png").read_bytes()[1:4] == b"PNG"
    assert "120 (100 to 300)" in capsys.readouterr().out
